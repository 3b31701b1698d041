"""Functions by name: a plugin registers them, and a config names them."""

from collections.abc import Callable
from typing import TypeVar

Hook = TypeVar("Hook", bound=Callable[..., object])


class Registry(dict[str, Hook]):
    """A mapping from names to functions of one kind.

    Each name has one function. The same function may register again (a module imported under two names); another
    function may not.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Hook], Hook]:
        """Decorator that registers a function under `name`.

        Raises:
            ValueError: the name is taken by another function.
        """

        def add(hook: Hook) -> Hook:
            if self.get(name, hook) is not hook:
                raise ValueError(f"{self.kind} {name!r} is already registered; choose another name")
            self[name] = hook
            return hook

        return add
