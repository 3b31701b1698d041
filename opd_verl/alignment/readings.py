"""Student and teachers along the representative paths, two forward passes each.

The first pass gives every model's most likely ids. The second pass gives every model's log-probs at the ids that some
model gives more than the threshold. A self-distilling teacher is the student with a longer prompt.

OUT/reading/NAME/      the first pass
OUT/reading/NAME.at/   the second

Shapes: L tokens of a path, K ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd_verl.alignment.tree.generation_tree import NOBODY, Ints
from opd_verl.alignment.tree.question import Floats, Path
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import Reading, ReadSettings, read_model

STUDENT = "student"


@dataclass(frozen=True)
class PathReader:
    """A model, and the prompt that it reads before each path."""

    model: Model
    prompts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ChosenPath:
    """A path that no model has read yet."""

    question: int
    tokens: Ints
    correct: bool


def read_paths(
    readers: Mapping[str, PathReader],
    chosen: Sequence[ChosenPath],
    threshold: float,
    settings: ReadSettings,
    folder: File,
    trust: bool,
) -> list[Path]:
    """The paths with all models' log-probs. Finished parts are not read again.

    Args:
        readers: STUDENT and every teacher.
        settings: the first pass.
    """
    first = {name: _reading(reader, chosen, folder / name, settings) for name, reader in readers.items()}
    _read(readers, first, trust)
    columns = [
        (reading.column("topk_ids", settings.topk), reading.column("topk_log_probs", settings.topk))
        for reading in first.values()
    ]
    ids = [
        probable([(likely[row], log_probs[row]) for likely, log_probs in columns], path.tokens, threshold)
        for row, path in enumerate(chosen)
    ]
    # A model must be asked for K real ids at each position: the path's own token takes the place of padding.
    asked = [
        np.where(known == NOBODY, path.tokens[:, None], known).reshape(-1)
        for known, path in zip(ids, chosen, strict=True)
    ]
    at = ReadSettings(temperature=settings.temperature)
    second = {name: _reading(reader, chosen, folder / f"{name}.at", at, asked) for name, reader in readers.items()}
    _read(readers, second, trust)
    log_probs = {name: reading.column("at_ids_log_probs") for name, reading in second.items()}
    return [
        _path(path, ids[row], {name: rows[row] for name, rows in log_probs.items()}) for row, path in enumerate(chosen)
    ]


def read_tokens(
    readers: Mapping[str, PathReader], chosen: Sequence[ChosenPath], temperature: float, folder: File, trust: bool
) -> dict[str, list[Floats]]:
    """Log-probs of the tokens of each rollout [L], nats, by model."""
    settings = ReadSettings(temperature=temperature)
    readings = {name: _reading(reader, chosen, folder / name, settings) for name, reader in readers.items()}
    _read(readers, readings, trust)
    return {name: reading.column("log_prob") for name, reading in readings.items()}


def probable(sides: Sequence[tuple[Ints, Floats]], tokens: Ints, threshold: float) -> Ints:
    """The ids that some side gives more than the threshold, and the path's own tokens, [L, K]; NOBODY is padding.

    sides: each model's most likely ids and their log-probs, [L, K'].
    """
    above = np.log(threshold)
    rows = [
        np.unique(
            np.concatenate([tokens[place : place + 1], *(ids[place][logs[place] > above] for ids, logs in sides)])
        )
        for place in range(len(tokens))
    ]
    padded = np.full((len(rows), max(map(len, rows))), NOBODY, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def _path(chosen: ChosenPath, ids: Ints, log_probs: dict[str, Floats]) -> Path:
    """The path with its log-probs. Values that are not finite are kept; their nodes have no cosine."""
    # float64 from here on: P_succ and cosines are computed in it.
    sides = {name: values.reshape(ids.shape).astype(np.float64) for name, values in log_probs.items()}
    return Path(chosen.tokens, chosen.correct, ids, sides.pop(STUDENT), sides)


def _reading(
    reader: PathReader,
    chosen: Sequence[ChosenPath],
    folder: File,
    settings: ReadSettings,
    at_ids: Sequence[Ints] | None = None,
) -> Reading:
    columns: dict[str, Sequence[Sequence[int] | NDArray[np.integer]]] = {
        "prompt_ids": reader.prompts,
        "response_ids": [path.tokens for path in chosen],
    }
    columns |= {} if at_ids is None else {"at_ids": at_ids}
    table = pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in columns.items()})
    return Reading(table, folder, settings)


def _read(readers: Mapping[str, PathReader], readings: Mapping[str, Reading], trust: bool) -> None:
    """Loads each model once for all its names: the student is also every self-distilling teacher."""
    for path in dict.fromkeys(reader.model.path for reader in readers.values()):
        names = [name for name, reader in readers.items() if reader.model.path == path]
        folder = readings[names[0]].folder
        log = folder.with_name(f"{folder.name}.log")
        model = readers[names[0]].model
        read_model(path, model.fingerprint, [readings[name] for name in names], trust, log)
