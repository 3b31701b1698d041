"""Our messages show the first line of a library's error."""

from opd_verl.config.errors import first_line


def test_the_first_line_of_an_error_is_never_empty() -> None:
    assert first_line(OSError("\n  no such host\nand more")) == "no such host"
    assert first_line(OSError("no such host"), 7) == "no such"
    assert first_line(ConnectionError()) == first_line(ConnectionError(" \n")) == "ConnectionError"
