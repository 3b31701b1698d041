"""Strings as values of Hydra overrides, and keys that hold one string or several."""

import re
from collections.abc import Iterable
from pathlib import Path


def hydra_value(value: str | Path) -> str:
    """`value` in quotes for a Hydra override, so that spaces, brackets, commas and `=` stay parts of it.

    In Hydra's grammar a backslash escapes only a quote, or another backslash before a quote; `${` interpolates even
    here.
    """
    doubled = re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", str(value))
    return "'" + doubled.replace("'", "\\'") + "'"


def strings(value: str | Iterable[str] | None) -> list[str]:
    """The strings of a key that takes one string, a list of strings, or nothing."""
    return [value] if isinstance(value, str) else list(value or ())
