"""Strings as values of Hydra overrides."""

import re
from pathlib import Path


def hydra_value(value: str | Path) -> str:
    """`value` in quotes for a Hydra override, so that spaces, brackets, commas and `=` stay parts of it.

    In Hydra's grammar a backslash escapes only a quote, or a backslash in front of one; `${` interpolates even here.
    """
    doubled = re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", str(value))
    return "'" + doubled.replace("'", "\\'") + "'"
