"""Reads the bare questions of a file of prompts, and the keys by which rows of several files match."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from opd_verl.config.errors import ConfigError
from opd_verl.data.rows import BadRow, Row, bare_question, info

KEYS = ("question", "index")


def rows_of(table: pa.Table) -> list[Row]:
    """Returns `prompt` and, if present, `extra_info` of every row."""
    return table.select([name for name in ("prompt", "extra_info") if name in table.column_names]).to_pylist()


def questions(table: pa.Table, path: Path, *templates: str) -> list[str]:
    """Returns the bare question of every row; `templates` are removed besides the known templates.

    Raises ConfigError if a prompt has no user message with text.
    """
    return [_question(row, number, path, templates) for number, row in enumerate(rows_of(table), start=1)]


def _question(row: Row, number: int, path: Path, templates: Sequence[str]) -> str:
    try:
        return bare_question(row, *templates)
    except BadRow as bad:
        remedy = "`convert` reports such rows and leaves them out"
        raise ConfigError("file", str(path), f"row {number}: {bad}", remedy) from bad


def keys(table: pa.Table, path: Path, kind: str) -> list[str]:
    """Returns a key per row: its question with single spaces, or `extra_info.index`.

    Raises ConfigError if an index is missing or not unique.
    """
    if kind == "question":
        return [" ".join(text.split()) for text in questions(table, path)]
    indices = [info(row).get("index") for row in rows_of(table)]
    repeated = [value for value, count in Counter(indices).items() if value is None or count > 1]
    if repeated:
        problem = f"extra_info.index {repeated[0]!r} does not name one row of {path}"
        raise ConfigError("--key", kind, problem, "use --key question")
    return [str(value) for value in indices]
