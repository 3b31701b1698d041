"""Reads and writes parquet tables and JSON lines. A file is written elsewhere, then moved: it is whole or absent."""

import json
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.config.errors import ConfigError
from opd_verl.data.rows import Row
from opd_verl.utils.files import whole


def parquet(text: str) -> Path:
    """Parses a command-line argument that names a parquet file."""
    if not text.endswith(".parquet"):
        raise ArgumentTypeError(f"{text!r} does not end in .parquet")
    return Path(text)


def read_table(path: Path, columns: Sequence[str] = ("prompt",), only: bool = False) -> pa.Table:
    """Reads a parquet file that must have `columns`.

    Args:
        only: whether to read just these columns and `extra_info`.

    Raises:
        ConfigError: the file cannot be read, or lacks a column.
    """
    try:
        there = pq.read_schema(path).names
        missing = [name for name in columns if name not in there]
        if not missing:
            wanted = [name for name in there if name in (*columns, "extra_info")]
            return pq.read_table(path, columns=wanted if only else None)
    except (FileNotFoundError, IsADirectoryError, pa.ArrowInvalid) as error:
        problem = f"cannot be read as parquet ({error})"
        raise ConfigError("file", str(path), problem, "`convert` makes such files") from error
    problem = f"lacks the columns {', '.join(missing)}"
    raise ConfigError("file", str(path), problem, "`convert` makes files of prompts, `rollouts` files of rollouts")


def make_table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Makes a table of all columns that any row has. Raises ConfigError if a column has several types."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in names})


def join(tables: Iterable[pa.Table]) -> pa.Table:
    """Puts the tables below each other. Raises ConfigError if a column has several types."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise ConfigError("column", "", f"of several types ({error})", "give each field one type") from error


def take(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """Returns the rows at these places, in this order."""
    # The type is explicit: Arrow makes an empty list an array of nulls, which `take` refuses.
    return table.take(pa.array(places, pa.int64()))


def replace_column(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    """Returns the table with new values in a column; a new column goes to the end."""
    place = table.schema.get_field_index(name)
    array = _array(name, values)
    return table.append_column(name, array) if place < 0 else table.set_column(place, name, array)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a parquet file. A column without any value becomes a column of texts."""
    # A schema of fields alone drops the notes of pandas and `datasets`: they describe the old columns.
    schema = pa.schema([field.with_type(_typed(field.type)) for field in table.schema])
    with whole(path) as unfinished:
        pq.write_table(table.cast(schema), unfinished)


def write_lines(rows: Sequence[Row], path: Path) -> None:
    """Writes one JSON object per line. Without rows it removes the file, so that no old file passes for a new file."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with whole(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def _array(name: str, values: Sequence[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError("column", name, f"of several types ({error})", "give the field one type") from error


def _typed(kind: pa.DataType) -> pa.DataType:
    """Replaces parquet's null type by text, at any depth: some readers do not know the null type."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_typed(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_typed(field.type)) for field in kind])
    return kind
