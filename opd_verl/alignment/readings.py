"""Student and teachers along the representative paths, two forward passes each.

The first gives every model's most likely ids; the second all models' log-probs at the ids that any of them gives more
than the threshold. A self-distilling teacher is the student behind a longer prompt.

OUT/reading/NAME/      the first pass
OUT/reading/NAME.at/   the second

Shapes: L tokens of a path, K ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd_verl.alignment.tree.generation_tree import NOBODY, Ints
from opd_verl.alignment.tree.question import Path
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import Reading, ReadSettings, read_model

STUDENT = "student"
Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class PathReader:
    """A model at the paths."""

    model: Model
    prompts: Sequence[Sequence[int]]
    """What it reads before each path."""


@dataclass(frozen=True)
class ChosenPath:
    """A path before anything is read along it."""

    question: int
    tokens: Ints
    correct: bool


def read_paths(
    readers: Mapping[str, PathReader],
    chosen: Sequence[ChosenPath],
    threshold: float,
    wanted: ReadSettings,
    folder: File,
    trust: bool,
) -> list[Path]:
    """The paths with all models' log-probs. What is there already is not read again.

    Args:
        readers: STUDENT and every teacher.
        wanted: the ids that a model is asked for in the first pass.
    """
    first = {name: _reading(one, chosen, folder / name, wanted) for name, one in readers.items()}
    _read(readers, first, trust)
    columns = [
        (one.column("topk_ids", wanted.topk), one.column("topk_log_probs", wanted.topk)) for one in first.values()
    ]
    ids = [
        probable([(side[0][row], side[1][row]) for side in columns], one.tokens, threshold)
        for row, one in enumerate(chosen)
    ]
    # Where an id is padding, the path's own token is asked for.
    asked = [np.where(one == NOBODY, path.tokens[:, None], one) for one, path in zip(ids, chosen, strict=True)]
    at = ReadSettings(temperature=wanted.temperature)
    second = {
        name: _reading(one, chosen, folder / f"{name}.at", at, [rows.reshape(-1) for rows in asked])
        for name, one in readers.items()
    }
    _read(readers, second, trust)
    found = {name: one.column("at_ids_log_probs") for name, one in second.items()}
    return [_path(one, ids[row], {name: rows[row] for name, rows in found.items()}) for row, one in enumerate(chosen)]


def read_tokens(
    readers: Mapping[str, PathReader], chosen: Sequence[ChosenPath], temperature: float, folder: File, trust: bool
) -> dict[str, Arrays]:
    """Model: log-probs of the tokens of each rollout [L], nats."""
    wanted = ReadSettings(temperature=temperature)
    readings = {name: _reading(one, chosen, folder / name, wanted) for name, one in readers.items()}
    _read(readers, readings, trust)
    return {name: one.column("log_prob") for name, one in readings.items()}


def probable(sides: Sequence[tuple[Ints, NDArray[Any]]], tokens: Ints, threshold: float) -> Ints:
    """The ids that some side gives more than the threshold, and the path's own, [L, K]; NOBODY behind them.

    sides: of each model its most likely ids and their log-probs, [L, K'].
    """
    above = np.log(threshold)
    rows = [
        np.unique(
            np.concatenate([tokens[place : place + 1], *(ids[place][logs[place] > above] for ids, logs in sides)])
        )
        for place in range(len(tokens))
    ]
    found = np.full((len(rows), max(map(len, rows))), NOBODY, np.int32)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


def _path(one: ChosenPath, ids: Ints, log_probs: dict[str, NDArray[Any]]) -> Path:
    """Values that are not finite stay so: their nodes have no cosine."""
    sides = {name: values.reshape(ids.shape).astype(np.float64) for name, values in log_probs.items()}
    return Path(one.tokens, one.correct, ids, sides.pop(STUDENT), sides)


def _reading(
    reader: PathReader,
    chosen: Sequence[ChosenPath],
    folder: File,
    wanted: ReadSettings,
    at_ids: Sequence[Ints] | None = None,
) -> Reading:
    columns: dict[str, Any] = {"prompt_ids": reader.prompts, "response_ids": [one.tokens for one in chosen]}
    columns |= {} if at_ids is None else {"at_ids": at_ids}
    table = pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in columns.items()})
    return Reading(table, folder, wanted)


def _read(readers: Mapping[str, PathReader], readings: Mapping[str, Reading], trust: bool) -> None:
    """Each model is loaded once, whatever it reads."""
    for path in dict.fromkeys(one.model.path for one in readers.values()):
        names = [name for name, one in readers.items() if one.model.path == path]
        folder = readings[names[0]].folder
        log = folder.with_name(f"{folder.name}.log")
        model = readers[names[0]].model
        read_model(path, model.fingerprint, [readings[name] for name in names], trust, log)
