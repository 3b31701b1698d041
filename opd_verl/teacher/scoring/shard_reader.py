"""Reads a batch with a model sharded over a process group: each rank reads a part of the requests, rank 0 gets all
hidden states.

Every rank runs the body once per batch, even with nothing to read: gathering a layer's weights is a collective of all
ranks. Shapes: R response tokens, H hidden size.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import batch_rows, fed_tokens
from opd_verl.teacher.scoring.reader import LocalReader, ModelSpec, OutOfStepError
from opd_verl.teacher.scoring.sharded import fill, from_leader, load_sharded
from opd_verl.teacher.snapshot import FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILLER = [ScoreRequest("filler", np.zeros(2), np.zeros(1))]
"""A rank without a part reads this request, so that it takes part in the collectives."""


@dataclass(frozen=True)
class ReadRows:
    """Rank 0's message: read your part of the requests, one part per rank, and send me the hidden states."""

    parts: list[list[ScoreRequest]]


@dataclass(frozen=True, eq=False)
class ReadLogits:
    """Rank 0's message: run the whole model on these ids [T] with me."""

    ids: Tensor


@dataclass(frozen=True)
class TakeWeights:
    """Rank 0's message: take your shards of new weights from me."""


class ShardedReader:
    """Rank 0's `Reader`; all other ranks must be in `follow`.

    A rank that fails leaves the others waiting for it, so any failure is an OutOfStepError.
    """

    may_share = False
    """Sharing prompts takes one forward pass or two, depending on a rank's requests: ranks would get out of step."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.own = LocalReader(model, may_share=False)
        self.model, self.body, self.packs = model, self.own.body, self.own.packs
        self.ranks = dist.get_world_size()

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """The checkpoint, on this and all other ranks."""
        return cls(load_sharded(from_leader(spec)))

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """`Reader.rows`."""
        parts = split([fed_tokens(request) for request in requests], self.ranks, not self.packs)
        lengths = [[len(requests[index].response_ids) for index in part] for part in parts]
        with _in_step():
            from_leader(ReadRows([[requests[index] for index in part] for part in parts]))
            own = self.own.rows([requests[index] for index in parts[0]])
            # Received after the own pass: rank 0 must take part in every layer's gathering before a follower can send.
            by_rank = [own, *(_receive(own, sum(rows), rank) for rank, rows in enumerate(lengths[1:], 1))]
        pieces = torch.cat(by_rank).split([length for rows in lengths for length in rows])
        by_index = dict(zip((index for part in parts for index in part), pieces, strict=True))
        return torch.cat([by_index[index] for index in range(len(requests))])

    def logits(self, ids_T: Tensor) -> Tensor:
        """`Reader.logits`."""
        with _in_step():
            from_leader(ReadLogits(ids_T.cpu()))
            return self.own.logits(ids_T)

    def take(self, snapshot: str) -> None:
        """`Reader.take`."""
        weights = load_file(Path(snapshot) / FILE)  # before the broadcast: a missing file leaves the ranks in step
        with _in_step():
            from_leader(TakeWeights())
            fill(self.model, weights)


@torch.inference_mode()
def follow() -> NoReturn:
    """The life of every rank but 0: loads its shard, then obeys rank 0's messages. Passes on errors of both."""
    reader, rank = LocalReader(load_sharded(from_leader()), may_share=False), dist.get_rank()
    while True:
        match from_leader():
            case ReadLogits(ids_T):
                reader.logits(ids_T)
            case TakeWeights():
                fill(reader.model, {})
            case ReadRows(parts) if rank < len(parts):
                dist.send(reader.rows(parts[rank]).contiguous(), 0)
            case _:  # ReadRows without a part for this rank
                reader.rows(FILLER)


def split(lengths: Sequence[int], ranks: int, padded: bool) -> list[list[int]]:
    """Indices in at most `ranks` parts, none empty, such that the largest part (padding included) is as small as it
    can be. So a batch that `batch_rows` filled for `ranks` ranks keeps each rank within the token budget."""
    longest = max(lengths)

    def fits(budget: int) -> bool:
        return len(batch_rows(lengths, budget, padded)) <= ranks

    budget = bisect_left(range(len(lengths) * longest), True, lo=longest, key=fits)
    return batch_rows(lengths, budget, padded)


def _receive(like: Tensor, rows: int, rank: int) -> Tensor:
    """The hidden states that a rank sends, [rows, H]."""
    hidden = like.new_empty(rows, like.shape[1])
    dist.recv(hidden, rank)
    return hidden


@contextmanager
def _in_step() -> Iterator[None]:
    """Turns any error between two broadcasts into OutOfStepError: the ranks then wait for different collectives."""
    try:
        yield
    except Exception as error:
        raise OutOfStepError(f"a shard failed while all were reading: {type(error).__name__}: {error}") from error
