"""Reading a batch with a model sharded over a process group: each rank reads a part of the requests, rank 0 gets all
hidden states.

Every rank runs the body once per batch, with whatever it has to read: the layers' weights are gathered by all ranks
together. Shapes: R response tokens, H hidden size.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import fed_tokens, plan_batches
from opd_verl.teacher.scoring.reader import LocalReader, ModelSpec, OutOfStepError
from opd_verl.teacher.scoring.sharded import fill, from_leader, load_sharded
from opd_verl.teacher.snapshot import FILE

FILLER = [ScoreRequest("filler", np.zeros(2), np.zeros(1))]
"""What a rank without a part reads, so that it gathers the weights with the others."""


class ShardedReader:
    """Rank 0's `Reader`; all other ranks must be in `follow`.

    A rank that fails leaves the others waiting for it, so any failure is an OutOfStepError.
    """

    may_share = False
    """It would need one forward pass or two, as the rank's own requests have it."""

    def __init__(self, model: Any) -> None:
        self.own = LocalReader(model, may_share=False)
        self.model, self.body, self.packs = model, self.own.body, self.own.packs
        self.ranks = dist.get_world_size()

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """The checkpoint, on this and all other ranks."""
        return cls(load_sharded(from_leader(spec)))

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """As `Reader.rows`."""
        parts = split([fed_tokens(request) for request in requests], self.ranks, not self.packs)
        lengths = [[len(requests[index].response_ids) for index in part] for part in parts]
        with _in_step():
            from_leader(("rows", [[requests[index] for index in part] for part in parts]))
            own = self.own.rows([requests[index] for index in parts[0]])
            found = [own, *(_receive(own, sum(rows), rank) for rank, rows in enumerate(lengths[1:], 1))]
        pieces = torch.cat(found).split([length for rows in lengths for length in rows])
        by_index = dict(zip((index for part in parts for index in part), pieces, strict=True))
        return torch.cat([by_index[index] for index in range(len(requests))])

    def logits(self, ids_T: Tensor) -> Tensor:
        """As `Reader.logits`."""
        with _in_step():
            from_leader(("logits", ids_T.cpu()))
            return self.own.logits(ids_T)

    def take(self, snapshot: str) -> None:
        """As `Reader.take`."""
        weights = load_file(Path(snapshot) / FILE)
        with _in_step():
            from_leader(("take", None))
            fill(self.model, weights)


@torch.inference_mode()
def follow() -> NoReturn:
    """What every rank but 0 does: loads its shard, then reads what rank 0 tells it to. Raises what either raises."""
    reader, rank = LocalReader(load_sharded(from_leader()), may_share=False), dist.get_rank()
    while True:
        match from_leader():
            case "logits", ids_T:
                reader.logits(ids_T)
            case "take", None:
                fill(reader.model, {})
            case "rows", parts if rank < len(parts):
                dist.send(reader.rows(parts[rank]).contiguous(), 0)
            case _:
                reader.rows(FILLER)


def split(lengths: Sequence[int], ranks: int, padded: bool) -> list[list[int]]:
    """Indices in at most `ranks` parts, none empty; the part that reads most, padding included, reads as little as it
    can: what `plan_batches` put into `ranks` batches behind one another stays within its budget, or the longest row."""
    longest = max(lengths)

    def fits(budget: int) -> bool:
        return len(plan_batches(lengths, budget, padded)) <= ranks

    budget = bisect_left(range(len(lengths) * longest), True, lo=longest, key=fits)
    return plan_batches(lengths, budget, padded)


def _receive(like: Tensor, rows: int, rank: int) -> Tensor:
    """That rank's hidden states, [rows, H]."""
    hidden = like.new_empty(rows, like.shape[1])
    dist.recv(hidden, rank)
    return hidden


@contextmanager
def _in_step() -> Iterator[None]:
    """Whatever goes wrong between two broadcasts, the ranks no longer wait for the same thing."""
    try:
        yield
    except Exception as error:
        raise OutOfStepError(f"a shard failed while all were reading: {type(error).__name__}: {error}") from error
