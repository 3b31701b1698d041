"""Short names for models and benchmarks, made of their paths; they become names of files. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from opd_verl.config.errors import ConfigError

INSIDE_A_CHECKPOINT = ("huggingface", "actor")
"""Folders that verl writes a checkpoint's model to; they name nothing."""


def named(key: str, value: Any) -> dict[str, str]:
    """name: path, from a mapping, a list of paths and `name=path`, or one path.

    Raises ConfigError where nothing is named, a name is no file name, or a path comes twice.
    """
    given = _pairs(value)
    if not given:
        raise ConfigError(key, value, "nothing is named", f"{key}=[one,another]")
    twice = [path for path, times in Counter(path for _, path in given).items() if times > 1]
    if twice:
        raise ConfigError(key, twice[0], "is named twice", "name it once")
    made = iter(distinct_names([path for name, path in given if name is None]))
    result = {name or next(made): path for name, path in given}
    if len(result) < len(given):
        raise ConfigError(key, value, "two of them have one name", f"{key}={{one: path, another: path}}")
    for name in result:
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(key, name, "a name becomes a file's: letters, digits, _ . + -", f"{key}={{a: path}}")
    return result


def _pairs(value: Any) -> list[tuple[str | None, str]]:
    if isinstance(value, Mapping):
        return [(str(name), str(path)) for name, path in value.items()]
    items = [value] if isinstance(value, str | PurePath) else list(value or [])
    return [_pair(str(item)) for item in items]


def _pair(item: str) -> tuple[str | None, str]:
    name, equals, path = item.partition("=")
    return (name, path) if equals and "/" not in name else (None, item)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last folder of each path, and as many more in front as it takes to tell them apart."""
    parts = [_telling(path) for path in paths]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        clashing = {name for name, times in Counter(names).items() if times > 1}
        names = ["-".join(part[-depth:]) if name in clashing else name for part, name in zip(parts, names, strict=True)]
    return names


def _telling(path: str) -> list[str]:
    """The folders of a path as parts of a name, without those that tell nothing."""
    stem = re.sub(r"\.(parquet|jsonl)$", "", path)
    parts = [re.sub(r"[^\w.+-]", "_", part) for part in PurePath(stem).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in INSIDE_A_CHECKPOINT:
        parts.pop()
    return parts or ["model"]
