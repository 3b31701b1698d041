"""The one error that users see for a bad setting."""

from typing import Any


class ConfigError(ValueError):
    """A setting that cannot work: names the key, its value, what is wrong, and the remedy."""

    def __init__(self, key: str, value: Any, problem: str, remedy: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}. Remedy: {remedy}.")
        self.key = key
        self.problem = f"{key}={value!r}: {problem}"
        self.remedy = remedy
