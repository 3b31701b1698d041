"""Reads a model at given tokens, with one forward pass: the parent's side, and the child process that holds the model.

Shapes: R response tokens of a response, K most likely ids, K' ids asked for, M masses. Nats; [R, K] lies flat in a row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_verl.sampling.child import carry_out, run_child
from opd_verl.sampling.parts import Parts
from opd_verl.utils.files import write_table

REQUESTS = "requests.parquet"
READ_SCHEMA = pa.schema({"prompt_ids": pa.list_(pa.int32()), "response_ids": pa.list_(pa.int32())})
"""Of requests; `at_ids` (list of int32, K' for each response token) where log-probs at other ids are wanted."""
RESPONSES_PER_PART = 32
MASS_KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""k whose cumulative probability `Wanted.masses` reads; a k above the vocabulary counts as all of it."""


@dataclass(frozen=True)
class ReadSettings:
    """What is read besides `log_prob` and `entropy` [R]."""

    topk: int = 0
    """`topk_ids` and `topk_log_probs` [R, K]."""
    masses: bool = False
    """`masses` [R, M]: the probability of the k most likely ids, for every k of MASS_KS."""
    temperature: float = 1.0
    """Divides the logits."""


@dataclass(frozen=True)
class Reading:
    """Responses at which one model is read."""

    requests: pa.Table
    """As `READ_SCHEMA`."""
    folder: Path
    wanted: ReadSettings = ReadSettings()

    @property
    def parts(self) -> Parts:
        """The finished pieces."""
        return Parts(self.folder, -(-len(self.requests) // RESPONSES_PER_PART))

    def column(self, name: str, width: int = 0) -> list[NDArray[Any]]:
        """What was read at each response: [R], or [R, width]."""
        parts = self.parts
        rows = [row for index in range(parts.count) for row in ragged(parts.read(index, [name])[name])]
        return [row.reshape(-1, width) for row in rows] if width else rows


def ragged(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """The rows of a column of lists as arrays."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    offsets = lists.offsets.to_numpy()
    return [lists.values.to_numpy()[first:end] for first, end in pairwise(offsets)]


def checksum(requests: pa.Table) -> str:
    """Of all token ids: equal requests have equal ones, however the table is split."""
    found = hashlib.sha256()
    for name in requests.column_names:
        rows = ragged(requests[name])
        found.update(np.array([len(row) for row in rows], np.int64).tobytes())
        found.update(np.concatenate([*rows, np.zeros(0, np.int32)]).tobytes())
    return found.hexdigest()[:16]


def read_model(model: str, identity: dict[str, Any], readings: Sequence[Reading], trust: bool, log: Path) -> None:
    """Makes the missing parts of all readings, in a child process that loads the model once; starts none for nothing.

    identity: the model's fingerprint; trust: whether its own code may run. All readings want the same temperature.
    """
    for reading in readings:
        wanted = {"model": identity, "requests": checksum(reading.requests), "wanted": asdict(reading.wanted)}
        reading.parts.open(wanted)
        write_table(reading.folder / REQUESTS, reading.requests)
    todo = [{"folder": str(one.folder), "wanted": asdict(one.wanted)} for one in readings if one.parts.missing()]
    if todo:
        run_child("opd_verl.sampling.read", {"model": model, "trust": trust, "readings": todo}, log)


def main(task: dict[str, Any], terminal: TextIO) -> None:
    """The child: one forward pass over the responses of every missing part."""
    import torch
    from tqdm import tqdm

    from opd_verl.teacher.scoring.scorer import Scorer

    dtype = "auto" if torch.cuda.is_available() else "float32"
    wanted = [ReadSettings(**one["wanted"]) for one in task["readings"]]
    temperature = wanted[0].temperature
    scorer = Scorer.from_pretrained(
        task["model"], dtype=dtype, trust_remote_code=task["trust"], temperature=temperature
    )
    for one, asked in zip(task["readings"], wanted, strict=True):
        folder = Path(one["folder"])
        reading = Reading(pq.read_table(folder / REQUESTS), folder, asked)
        for index in tqdm(reading.parts.missing(), desc=f"reading {'/'.join(folder.parts[-2:])}", file=terminal):
            reading.parts.write(index, _read(scorer, reading, index))


def _read(scorer: Any, reading: Reading, index: int) -> pa.Table:
    from opd_verl.teacher.score import ScoreRequest

    first, wanted = index * RESPONSES_PER_PART, reading.wanted
    rows = reading.requests.slice(first, RESPONSES_PER_PART)
    pairs = zip(ragged(rows["prompt_ids"]), ragged(rows["response_ids"]), strict=True)
    asked = [ScoreRequest(f"response {first + place}", *pair) for place, pair in enumerate(pairs)]
    limit = scorer.vocab_limit
    states = scorer.score(asked, topk=min(max(wanted.topk, MASS_KS[-1] * wanted.masses), limit))
    found: dict[str, list[Any]] = {
        "log_prob": [one.log_q for one in states],
        "entropy": [one.entropy for one in states],
    }
    if wanted.topk:
        found["topk_ids"] = [one.topk_ids[:, : wanted.topk] for one in states]
        found["topk_log_probs"] = [one.topk_log_q[:, : wanted.topk] for one in states]
    if wanted.masses:
        found["masses"] = [_masses(one.topk_log_q) for one in states]
    if "at_ids" in rows.column_names:
        found["at_ids_log_probs"] = _at_ids(scorer, states, ragged(rows["at_ids"]))
    return pa.table({name: _lists(values) for name, values in found.items()})


def _masses(topk_log_probs: Any) -> Any:
    total = topk_log_probs.double().exp().cumsum(-1).clamp(max=1.0).float()
    return total[:, [min(k, total.shape[1]) - 1 for k in MASS_KS]]


def _at_ids(scorer: Any, states: Sequence[Any], at_ids: Sequence[NDArray[Any]]) -> list[Any]:
    import torch

    pairs = zip(states, at_ids, strict=True)
    return [scorer.log_q_at(one, torch.from_numpy(ids.copy()).view(len(one.log_q), -1)) for one, ids in pairs]


def _lists(tensors: Sequence[Any]) -> pa.Array:
    flat = [tensor.reshape(-1).numpy() for tensor in tensors]
    offsets = np.cumsum([0, *(len(one) for one in flat)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)))


if __name__ == "__main__":
    carry_out(main)
