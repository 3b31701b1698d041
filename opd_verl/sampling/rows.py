"""Reads the rows of verl-format files, checks their columns, and gives every prompt a name."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from opd_verl.config.errors import ConfigError
from opd_verl.utils.files import json_digest

ChatMessage = dict[str, str]
"""A message of a chat: role and content."""
LONGEST_LINE = 2**26
"""Most bytes of a row of a .jsonl file."""
CONVERT = "python -m opd_verl.data convert {name} --out {name}.parquet"
"""Command that converts a data set; error messages show it."""


def read_rows(key: str, files: Sequence[Path], limit: int | None = None) -> pa.Table:
    """The first `limit` rows of all files together, in the order of the files; None: all rows.

    `key` is the setting that names the files. Raises ConfigError for a file that is missing, of another format, empty,
    or without `prompt` (a list of messages) and `reward_model.ground_truth`.
    """
    if limit is not None and limit < 1:
        raise ConfigError("limit", limit, "must be at least 1", "drop it to take all rows")
    if not files:
        raise ConfigError(key, [], "no file is given", f"{key}=[x.parquet]")
    tables = [_read(key, file).replace_schema_metadata(None) for file in files]
    try:
        return pa.concat_tables(tables, promote_options="permissive").slice(0, limit)
    except pa.ArrowTypeError as error:
        names = [str(file) for file in files]
        raise ConfigError(
            key, names, f"a column has other types in one file than in another ({error})", "sample them one by one"
        ) from error


def _read_jsonl(file: Path) -> pa.Table:
    return pyarrow.json.read_json(file, pyarrow.json.ReadOptions(block_size=LONGEST_LINE))


READERS = {".parquet": pq.read_table, ".jsonl": _read_jsonl}


def _read(key: str, file: Path) -> pa.Table:
    if not file.is_file():
        raise ConfigError(key, str(file), "no such file", f"make it with `{CONVERT.format(name=file.stem)}`")
    if file.suffix not in READERS:
        raise ConfigError(key, str(file), "not a .parquet or .jsonl file", f"`{CONVERT.format(name=file.stem)}`")
    try:
        rows = READERS[file.suffix](file)
    except pa.ArrowInvalid as error:
        raise ConfigError(key, str(file), f"cannot be read ({error})", "make the file again") from error
    _check_columns(key, file, rows)
    return rows


def _check_columns(key: str, file: Path, rows: pa.Table) -> None:
    if not len(rows):
        raise ConfigError(key, str(file), "has no rows", "name a file with problems")
    types = {field.name: field.type for field in rows.schema}
    prompt, reward = types.get("prompt"), types.get("reward_model")
    wanted = {
        "prompt (a list of messages with role and content)": prompt is not None
        and pa.types.is_list(prompt)
        and _has(prompt.value_type, "role", "content"),
        "reward_model.ground_truth": reward is not None and _has(reward, "ground_truth"),
    }
    for name, there in wanted.items():
        if not there:
            problem = f"has no column {name}; its columns: {', '.join(types)}"
            raise ConfigError(key, str(file), problem, f"`{CONVERT.format(name=file.stem)}`")


def _has(type_: pa.DataType, *names: str) -> bool:
    return isinstance(type_, pa.StructType) and all(type_.get_field_index(name) >= 0 for name in names)


def identities(prompts: Sequence[object]) -> list[str]:
    """A name for each prompt, independent of the prompts' order: the prompt's hash and the number of its copy."""
    copies: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        text = json_digest(prompt)
        names.append(f"{text}.{copies[text]}")
        copies[text] += 1
    return names


def with_suffix(messages: Sequence[ChatMessage], suffix: str) -> list[ChatMessage]:
    """The messages with `suffix` after the last user's text and a space, unless the text ends with `suffix` already."""
    messages = [message.copy() for message in messages]
    asked = [message for message in messages if message["role"] == "user"]
    if suffix and asked and not asked[-1]["content"].rstrip().endswith(suffix.strip()):
        asked[-1]["content"] = f"{asked[-1]['content'].rstrip()} {suffix.strip()}"
    return messages
