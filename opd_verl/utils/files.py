"""Files that are written whole or not at all, digests of files and models, and the end of a log."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.parquet as pq

SMALL = 64 * 2**20
"""Bytes up to which a model's file is identified by its content; larger files by their size and time of writing."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets its real name when the block ends, and never if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        # Without fsync a crash of the machine could leave the new name on an empty file.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file or none."""
    with whole(path) as partial:
        partial.write_text(text)


def write_json(path: Path, content: object) -> None:
    """Writes a whole JSON file or none: indented, keys in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@overload
def finite(content: Mapping[str, object], digits: int | None = None) -> dict[str, object]:
    """A mapping gives a dictionary."""


@overload
def finite(content: object, digits: int | None = None) -> object:
    """Any other value gives a plain value."""


def finite(content: object, digits: int | None = None) -> object:
    """Plain values with None for NaN and infinities, which JSON lacks; rounded to `digits`, if given."""
    if isinstance(content, float):
        number = content if digits is None else round(content, digits)
        return number if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value, digits) for key, value in content.items()}
    return [finite(item, digits) for item in content] if isinstance(content, list | tuple) else content


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a whole parquet file or none."""
    with whole(path) as partial:
        pq.write_table(table, partial)


def digest(path: Path) -> str:
    """The first 16 hex digits of the sha256 of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def json_digest(content: object) -> str:
    """The first 16 hex digits of the sha256 of a value's JSON, keys sorted; values that JSON lacks become text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log, for a failure's message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def model_fingerprint(path: str) -> dict[str, object]:
    """Identifies a model: the commit of a hub name, else the folder and its files (large ones by size and mtime)."""
    if not Path(path).is_dir():
        from opd_verl.utils.hub import cached_commit

        return {"path": path, "commit": cached_commit(path)}
    files = sorted(file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith("."))
    return {"path": str(Path(path).resolve()), "files": {file.name: _identity(file) for file in files}}


def _identity(file: Path) -> str:
    stat = file.stat()
    return digest(file) if stat.st_size <= SMALL else f"{stat.st_size} bytes, mtime {stat.st_mtime_ns}"
