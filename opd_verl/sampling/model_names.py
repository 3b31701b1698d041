"""Short names for models and benchmarks, made from their paths; names become file names. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from opd_verl.config.errors import ConfigError

NamedPaths = str | PurePath | Sequence[str] | Mapping[str, str] | None
"""The value of a key that takes one path, a list of paths and `name=path`, or {name: path}."""
INSIDE_A_CHECKPOINT = ("huggingface", "actor")
"""Folders that verl writes a checkpoint's model to; such names say nothing about the model."""


def named(key: str, value: NamedPaths) -> dict[str, str]:
    """Reads the value of `key` as {name: path}.

    Raises ConfigError for an empty value, for a name that cannot be a file name, and for a repeated path or name.
    """
    given = _pairs(value)
    if not given:
        raise ConfigError(key, value, "no path is given", f"{key}=[/path/to/a,/path/to/b]")
    twice = [path for path, times in Counter(path for _, path in given).items() if times > 1]
    if twice:
        raise ConfigError(key, twice[0], "is given twice", "give it once")
    made = iter(distinct_names([path for name, path in given if name is None]))
    result = {name or next(made): path for name, path in given}
    if len(result) < len(given):
        raise ConfigError(key, value, "two paths would get the same name", f"{key}={{a: /path/to/a, b: /path/to/b}}")
    for name in result:
        if not re.fullmatch(r"[\w.+-]+", name):
            problem = "a name becomes a file name: letters, digits, _ . + -"
            raise ConfigError(key, name, problem, f"{key}={{a: /path/to/a}}")
    return result


def _pairs(value: NamedPaths) -> list[tuple[str | None, str]]:
    if isinstance(value, Mapping):
        return [(str(name), str(path)) for name, path in value.items()]
    items = [value] if isinstance(value, str | PurePath) else list(value or [])
    return [_pair(str(item)) for item in items]


def _pair(item: str) -> tuple[str | None, str]:
    name, equals, path = item.partition("=")
    # A "/" before the "=" belongs to a path that has a "=" in it.
    return (name, path) if equals and "/" not in name else (None, item)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last folder of each path, with enough parent folders in front to tell all paths apart."""
    parts = [_telling(path) for path in paths]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        clashing = {name for name, times in Counter(names).items() if times > 1}
        names = ["-".join(part[-depth:]) if name in clashing else name for part, name in zip(parts, names, strict=True)]
    return names


def _telling(path: str) -> list[str]:
    """Folders of a path that may be parts of a name."""
    stem = re.sub(r"\.(parquet|jsonl)$", "", path)
    parts = [re.sub(r"[^\w.+-]", "_", part) for part in PurePath(stem).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in INSIDE_A_CHECKPOINT:
        parts.pop()
    return parts or ["model"]
