"""The one error that users see for a bad setting, and what a library's error says in one line."""

from typing import Any


class ConfigError(ValueError):
    """A setting that cannot work: names the key, its value, what is wrong, and the remedy."""

    def __init__(self, key: str, value: Any, problem: str, remedy: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}. Remedy: {remedy}.")
        self.key = key
        self.problem = f"{key}={value!r}: {problem}"
        self.remedy = remedy


def first_line(error: BaseException, most: int | None = None) -> str:
    """What an error's message begins with, at most so many characters; the error's name where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
