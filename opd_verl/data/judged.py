"""Reads files of rollouts: each row has a prompt and the lists `responses`, `finished` and `scores`.

`finished` says whether a response ended by itself. A score is 1.0 (correct), 0.0 (wrong) or null (not judged).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import read_table
from opd_verl.data.prompts import keys
from opd_verl.data.rows import Row
from opd_verl.schema import ROLLOUT_COLUMNS


@dataclass
class Judged:
    """The rollouts of one question, in their order in the file."""

    responses: list[str] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)


def check_rollouts(rows: Sequence[Row], path: Path) -> None:
    """Raises ConfigError if a list is missing, lengths differ, or a score is not 1.0, 0.0 or null."""
    for number, row in enumerate(rows, start=1):
        lengths = {name: None if values is None else len(values) for name, values in row.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise ConfigError("rollouts", str(path), f"row {number} holds {lengths}", "one entry for every response")
        if not set(row["scores"]) <= {1.0, 0.0, None}:
            problem = f"row {number} has the scores {row['scores']}"
            raise ConfigError("rollouts", str(path), problem, "1.0 is correct, 0.0 wrong, null not judged")


def read_judged(path: Path, key: str, responses: bool = True) -> dict[str, Judged]:
    """Returns the rollouts by the key of their question; several rows of one question are joined.

    Args:
        key: "question" or "index".
        responses: whether to read the texts; without them `Judged.responses` is empty.
    """
    columns = ("finished", "scores", *(("responses",) if responses else ()))
    table = read_table(path, ("prompt", *columns), only=True)
    rows = table.select(list(columns)).to_pylist()
    check_rollouts(rows, path)
    by_key: dict[str, Judged] = {}
    for name, row in zip(keys(table, path, key), rows, strict=True):
        judged = by_key.setdefault(name, Judged())
        judged.responses += row.get("responses", [])
        judged.finished += row["finished"]
        judged.scores += row["scores"]
    return by_key


def without_rollouts(table: pa.Table) -> pa.Table:
    """Returns the table without the columns of the rollouts."""
    return table.drop_columns([name for name in ROLLOUT_COLUMNS if name in table.column_names])
