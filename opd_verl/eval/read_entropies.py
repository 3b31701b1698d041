"""Reads a model's entropies at its own tokens: the parent's side, and the child process that holds the model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_verl.files import write_table
from opd_verl.sampling.child import carry_out, run_child
from opd_verl.sampling.parts import Parts

REQUESTS = "requests.parquet"
SCHEMA = pa.schema({"prompt_ids": pa.list_(pa.int32()), "response_ids": pa.list_(pa.int32())})
RESPONSES_PER_PART = 32


@dataclass(frozen=True)
class Reading:
    """Responses of one model to one benchmark whose entropies are wanted."""

    requests: pa.Table
    """As `SCHEMA`."""
    folder: Path

    @property
    def parts(self) -> Parts:
        """The finished pieces."""
        return Parts(self.folder, -(-len(self.requests) // RESPONSES_PER_PART))


def read_entropies(model: str, identity: dict[str, Any], readings: Sequence[Reading], trust: bool, log: Path) -> None:
    """Makes the missing parts of all readings, in a child process that loads the model once; starts none for nothing.

    identity: the model's fingerprint; trust: whether its own code may run.
    """
    for reading in readings:
        # Rows of token ids have one writing: equal bytes are equal requests.
        checksum = hashlib.sha256(str(reading.requests.to_pydict()).encode()).hexdigest()[:16]
        reading.parts.open({"model": identity, "requests": checksum})
        write_table(reading.folder / REQUESTS, reading.requests)
    todo = [str(reading.folder) for reading in readings if reading.parts.missing()]
    if todo:
        run_child("opd_verl.eval.read_entropies", {"model": model, "trust": trust, "folders": todo}, log)


def entropies(reading: Reading) -> list[NDArray[np.float32]]:
    """Entropies [R] of each response, nats."""
    parts = reading.parts
    rows = [row for index in range(parts.count) for row in parts.read(index)["entropy"].to_pylist()]
    return [np.asarray(row, np.float32) for row in rows]


def main(task: dict[str, Any], terminal: TextIO) -> None:
    """The child: one forward pass over the responses of every missing part."""
    import torch
    from tqdm import tqdm

    from opd_verl.teacher.scorer import Scorer

    dtype = "auto" if torch.cuda.is_available() else "float32"
    scorer = Scorer.from_pretrained(task["model"], dtype=dtype, trust_remote_code=task["trust"])
    for reading in (Reading(pq.read_table(Path(folder) / REQUESTS), Path(folder)) for folder in task["folders"]):
        name = f"{reading.folder.parent.name}: entropies of {reading.folder.name}"
        for index in tqdm(reading.parts.missing(), desc=name, file=terminal, leave=False):
            reading.parts.write(index, _score(scorer, reading.requests, index))


def _score(scorer: Any, requests: pa.Table, index: int) -> pa.Table:
    from opd_verl.teacher.score import ScoreRequest

    first = index * RESPONSES_PER_PART
    rows = requests.slice(first, RESPONSES_PER_PART).to_pylist()
    asked = [
        ScoreRequest(f"response {first + place}", np.array(row["prompt_ids"]), np.array(row["response_ids"]))
        for place, row in enumerate(rows)
    ]
    states = scorer.score(asked)
    return pa.table({"entropy": pa.array([state.entropy.numpy() for state in states], pa.list_(pa.float32()))})


if __name__ == "__main__":
    carry_out(main)
