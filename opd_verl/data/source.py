"""Reads raw rows, one at a time, from a local file or from the hub; an unreadable row is a BadRow in its place."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.config.errors import ConfigError, first_line
from opd_verl.data.rows import BadRow, Row
from opd_verl.data.sets import KnownSet

Record = tuple[int, Row | BadRow]
"""The number of a line (jsonl) or row, from 1, and its content."""
ROWS_AT_ONCE = 1000


def read_file(path: Path) -> Iterator[Record]:
    """Reads the rows of a parquet, jsonl or json file. Raises ConfigError for an unreadable file or another format."""
    if not path.is_file():
        raise ConfigError("file", str(path), "there is no such file", "give the path of a parquet, jsonl or json file")
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json}
    if path.suffix not in readers:
        raise ConfigError("file", str(path), f"{path.suffix!r} is not one of {', '.join(readers)}", "convert it first")
    return readers[path.suffix](path)


def unit(path: Path | None) -> str:
    """Unit of a record's number: "line" or "row"."""
    return "line" if path and path.suffix == ".jsonl" else "row"


def read_hub(known: KnownSet, split: str) -> Iterator[Record]:
    """Reads the rows of a split from the hub. Raises ConfigError if the hub does not deliver the split."""
    from datasets import load_dataset

    try:
        rows = load_dataset(known.repo, known.config, split=known.splits[split])
    except OSError as error:  # `datasets` derives its own errors (no network, no such set) from OSError
        problem = f"the hub did not deliver the data set ({first_line(error)})"
        remedy = "download a file of the set elsewhere and name it by --source"
        raise ConfigError("set", known.repo, problem, remedy) from error
    return enumerate(map(dict, rows), start=1)


def first(records: Iterator[Record], limit: int | None) -> Iterator[Record]:
    """Returns the first `limit` records, or all. Raises ConfigError if the limit is not positive."""
    if limit is not None and limit < 1:
        raise ConfigError("--limit", limit, "not a number of rows", "give 1 or more, or leave it out")
    return islice(records, limit)


def _parquet(path: Path) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ConfigError("file", str(path), f"not a parquet file ({error})", "check how it was made") from error
    batches = (batch.to_pylist() for batch in file.iter_batches(ROWS_AT_ONCE))
    yield from enumerate((row for rows in batches for row in rows), start=1)


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _line(line)


def _line(line: bytes) -> Row | BadRow:
    try:
        return _mapping(json.loads(line))
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        return BadRow("malformed JSON", str(error))


def _json(path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(
            "file", str(path), f"not JSON ({error})", "one object a line goes in a .jsonl file"
        ) from error
    if not isinstance(rows, list):
        problem = f"its top level is of type {type(rows).__name__}, not a list"
        raise ConfigError("file", str(path), problem, "write a list of objects, or one object a line as .jsonl")
    yield from enumerate(map(_mapping, rows), start=1)


def _mapping(row: object) -> Row | BadRow:
    if isinstance(row, dict):
        return row
    return BadRow("wrong type", f"the row is of type {type(row).__name__}, not an object")
