"""Reads a model at given tokens with one forward pass: the parent's side, and the child process that holds the model.

Shapes: R response tokens of a response, K most likely ids, K' requested ids, M masses. Log-probs and entropies are in
nats. A parquet row holds [R, K] flat.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_verl.sampling.child import carry_out, run_child
from opd_verl.sampling.parts import REQUESTS, ShardFolder
from opd_verl.sampling.settings import from_fields
from opd_verl.utils.files import write_table

if TYPE_CHECKING:
    from torch import Tensor

    from opd_verl.teacher.scoring.scorer import Scorer
    from opd_verl.teacher.scoring.state import RolloutState

READ_SCHEMA = pa.schema({"prompt_ids": pa.list_(pa.int32()), "response_ids": pa.list_(pa.int32())})
"""Columns of the requests. The optional column `at_ids` (int32, K' for each response token) requests log-probs."""
RESPONSES_PER_PART = 32
MASS_KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Every k whose cumulative probability `ReadSettings.masses` reads; a k above the vocabulary's size means all ids."""


@dataclass(frozen=True)
class ReadSettings:
    """Columns to read besides `log_prob` and `entropy` [R], and the temperature."""

    topk: int = 0
    """K of the columns `topk_ids` and `topk_log_probs` [R, K]; 0: no such columns."""
    masses: bool = False
    """Whether `masses` [R, M] is read: the probability of the k most likely ids, for every k of MASS_KS."""
    temperature: float = 1.0
    """Divides the logits."""


@dataclass(frozen=True)
class Reading:
    """Responses at which one model is read, and the folder of the results."""

    requests: pa.Table
    """Columns of READ_SCHEMA, and optionally `at_ids`."""
    folder: Path
    wanted: ReadSettings = ReadSettings()

    @property
    def parts(self) -> ShardFolder:
        """The finished shards."""
        return ShardFolder(self.folder, -(-len(self.requests) // RESPONSES_PER_PART))

    def column(self, name: str, width: int = 0) -> list[NDArray[Any]]:
        """One column of the results, an array for each response: [R], or [R, width]. float32; ids are int32."""
        parts = self.parts
        rows = [row for index in range(parts.count) for row in ragged(parts.read(index, [name])[name])]
        return [row.reshape(-1, width) for row in rows] if width else rows


class ReadingTask(TypedDict):
    """A reading that lacks shards, in the plain values that the child receives."""

    folder: str
    wanted: dict[str, object]


class ReadTask(TypedDict):
    """The child's task: a model, and all its readings."""

    model: str
    trust: bool
    readings: list[ReadingTask]


def ragged(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """The rows of a column of lists as arrays. They are views: nothing is copied."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    offsets = lists.offsets.to_numpy()
    return [lists.values.to_numpy()[first:end] for first, end in pairwise(offsets)]


def checksum(requests: pa.Table) -> str:
    """Hash of all token ids: equal requests have equal hashes, however Arrow has split the table into chunks."""
    digest = hashlib.sha256()
    for name in requests.column_names:
        rows = ragged(requests[name])
        # The lengths go in first: [1, 2], [3] and [1], [2, 3] are different requests.
        digest.update(np.array([len(row) for row in rows], np.int64).tobytes())
        digest.update(np.concatenate([*rows, np.zeros(0, np.int32)]).tobytes())
    return digest.hexdigest()[:16]


def read_model(model: str, identity: Mapping[str, object], readings: Sequence[Reading], trust: bool, log: Path) -> None:
    """Makes the missing shards of all readings in a child process that loads the model once.

    No process is started if no shard is missing. All readings must have the same temperature.

    Args:
        identity: the model's fingerprint.
        trust: whether the model's own code may run.
    """
    for reading in readings:
        # The keys equal the keys in settings.json of earlier runs, so that their folders stay valid.
        made_with = {"model": identity, "requests": checksum(reading.requests), "wanted": asdict(reading.wanted)}
        reading.parts.open(made_with)
        write_table(reading.folder / REQUESTS, reading.requests)
    todo = [
        ReadingTask(folder=str(reading.folder), wanted=asdict(reading.wanted))
        for reading in readings
        if reading.parts.missing()
    ]
    if todo:
        run_child("opd_verl.sampling.read", ReadTask(model=model, trust=trust, readings=todo), log)


def main(task: ReadTask, terminal: TextIO) -> None:
    """Runs in the child: one forward pass over the responses of every missing shard."""
    import torch
    from tqdm import tqdm

    from opd_verl.teacher.scoring.scorer import Scorer

    # On a GPU the weights keep the checkpoint's dtype, as in training; a CPU computes bfloat16 slowly.
    dtype = "auto" if torch.cuda.is_available() else "float32"
    settings = [from_fields(ReadSettings, reading["wanted"]) for reading in task["readings"]]
    scorer = Scorer.from_pretrained(
        task["model"], dtype=dtype, trust_remote_code=task["trust"], temperature=settings[0].temperature
    )
    for reading_task, wanted in zip(task["readings"], settings, strict=True):
        folder = Path(reading_task["folder"])
        reading = Reading(pq.read_table(folder / REQUESTS), folder, wanted)
        for index in tqdm(reading.parts.missing(), desc=f"reading {'/'.join(folder.parts[-2:])}", file=terminal):
            reading.parts.write(index, _read(scorer, reading, index))


def _read(scorer: "Scorer", reading: Reading, index: int) -> pa.Table:
    """One shard of the results."""
    from opd_verl.teacher.score import ScoreRequest

    first, wanted = index * RESPONSES_PER_PART, reading.wanted
    rows = reading.requests.slice(first, RESPONSES_PER_PART)
    pairs = zip(ragged(rows["prompt_ids"]), ragged(rows["response_ids"]), strict=True)
    requests = [ScoreRequest(f"response {first + place}", *pair) for place, pair in enumerate(pairs)]
    # The masses are sums over a top-k, so the pass asks for the largest k that any column needs.
    largest_k = max(wanted.topk, MASS_KS[-1] if wanted.masses else 0)
    states = scorer.score(requests, topk=min(largest_k, scorer.vocab_limit))
    columns = {
        "log_prob": [state.log_q for state in states],
        "entropy": [_there(state.entropy) for state in states],
    }
    if wanted.topk:
        columns["topk_ids"] = [_there(state.topk_ids)[:, : wanted.topk] for state in states]
        columns["topk_log_probs"] = [_there(state.topk_log_q)[:, : wanted.topk] for state in states]
    if wanted.masses:
        columns["masses"] = [_masses(_there(state.topk_log_q)) for state in states]
    if "at_ids" in rows.column_names:
        columns["at_ids_log_probs"] = _at_ids(scorer, states, ragged(rows["at_ids"]))
    return pa.table({name: _lists(tensors) for name, tensors in columns.items()})


def _there(tensor: "Tensor | None") -> "Tensor":
    """Returns a field that a local forward pass always fills; only an inference server leaves fields out."""
    assert tensor is not None
    return tensor


def _masses(topk_log_probs: "Tensor") -> "Tensor":
    """Cumulative probabilities [R, M] at MASS_KS."""
    # float64: in float32 the rounding error of 256 additions is as large as 1 - mass for a mass near 1.
    total = topk_log_probs.double().exp().cumsum(-1).clamp(max=1.0).float()
    return total[:, [min(k, total.shape[1]) - 1 for k in MASS_KS]]


def _at_ids(scorer: "Scorer", states: Sequence["RolloutState"], at_ids: Sequence[NDArray[np.int32]]) -> list["Tensor"]:
    """Log-probs [R, K'] at the ids that each response requests."""
    import torch

    pairs = zip(states, at_ids, strict=True)
    # A copy, because torch warns about read-only arrays, and Arrow's arrays are read-only.
    return [scorer.log_q_at(state, torch.from_numpy(ids.copy()).view(len(state.log_q), -1)) for state, ids in pairs]


def _lists(tensors: Sequence["Tensor"]) -> pa.Array:
    """A column with one flat list per response."""
    flat = [tensor.reshape(-1).numpy() for tensor in tensors]
    offsets = np.cumsum([0, *(len(values) for values in flat)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)))


if __name__ == "__main__":
    carry_out(main)
