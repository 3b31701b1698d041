"""The error that users see for a bad setting, and a library's error in one line."""


class ConfigError(ValueError):
    """A setting that cannot work: names the key, its value, what is wrong, and the remedy."""

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}. Remedy: {remedy}.")
        self.key = key
        self.problem = f"{key}={value!r}: {problem}"
        self.remedy = remedy


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of an error's message, at most `most` characters; the error's name where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
