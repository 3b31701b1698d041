"""Chunks of rows: the buffers that every pass over the LM head reuses, and the softmax within them.

Shapes: N rows in all, C rows of one chunk (one matrix product), B rows of one block (elementwise work in float32),
V ids, M columns. Nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_ROWS = {8: 256, 4: 512, 2: 1024}
"""By bytes per element: a 16-bit weight gradient is rounded after every chunk, hence fewer and larger ones."""
DEVICE_ROWS = 2048
CPU_BLOCK, DEVICE_BLOCK = 16, 512


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The student's LM head: logits(h) = weight h + bias over the ids 0..limit-1.

    weight [>= limit, H] and bias [>= limit] or None are the parameters themselves, so that gradients reach them.
    """

    weight: Tensor
    bias: Tensor | None
    limit: int


@dataclass(frozen=True)
class ChunkSizes:
    """Rows of one matrix product, and of one block of float32 work within it."""

    rows: int
    block: int

    @classmethod
    def of(cls, weight: Tensor, rows: int | None = None) -> "ChunkSizes":
        """`rows` per chunk, or what suits the head's device and dtype."""
        on_cpu, size = weight.device.type == "cpu", weight.element_size()
        if rows is None:
            rows = CPU_ROWS[size] if on_cpu else DEVICE_ROWS
        return cls(rows, min(rows, CPU_BLOCK if on_cpu else DEVICE_BLOCK))


def parts(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..total; one empty slice where there is nothing to cover."""
    for first in range(0, max(total, 1), size):
        yield slice(first, min(first + size, total))


def within(chunk: slice, block: slice) -> slice:
    """The rows of a chunk's block, counted from the first row of all."""
    return slice(chunk.start + block.start, chunk.start + block.stop)


class Workspace:
    """The buffers of one pass: logits [C, V] in the head's dtype, and two float32 blocks [B, V]. Never grows."""

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None, sizes: ChunkSizes, total_rows: int) -> None:
        rows = min(sizes.rows, max(total_rows, 1))
        width, device = weight_VH.shape[0], weight_VH.device
        self.weight_VH, self.bias_V, self.rows, self.block = weight_VH, bias_V, rows, min(sizes.block, rows)
        self.logits_CV = torch.empty(rows, width, dtype=weight_VH.dtype, device=device)
        self.scaled_BV = torch.empty(self.block, width, dtype=torch.float32, device=device)
        self.probs_BV = torch.empty_like(self.scaled_BV)

    @classmethod
    def cut(
        cls, weight_VH: Tensor, bias_V: Tensor | None, limit: int, sizes: ChunkSizes, total_rows: int
    ) -> "Workspace":
        """For the first `limit` ids of a head."""
        return cls(weight_VH[:limit], None if bias_V is None else bias_V[:limit], sizes, total_rows)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """weight h + bias [C, V], in the head's dtype; valid until the next call."""
        out_CV = self.logits_CV[: len(hidden_CH)]
        torch.mm(hidden_CH, self.weight_VH.t(), out=out_CV)
        return out_CV if self.bias_V is None else out_CV.add_(self.bias_V)

    def softmax(self, logits_BV: Tensor, temperature_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of one block: scaled logits [B, V] and probabilities [B, V], both float32 and ours, and logsumexp [B]."""
        scaled_BV = self.load(logits_BV)
        if temperature_B is not None:
            scaled_BV.div_(temperature_B[:, None])
        return scaled_BV, *self.normalise(scaled_BV)

    def load(self, logits_BV: Tensor) -> Tensor:
        """A float32 copy of a block, valid until the next call."""
        return self.scaled_BV[: len(logits_BV)].copy_(logits_BV)

    def normalise(self, scaled_BV: Tensor) -> tuple[Tensor, Tensor]:
        """softmax [B, V] and logsumexp [B] = max - log max p + log sum p.

        The largest probability never underflows; the last term is torch's rounding over a long row, 1e-6 at 150,000.
        """
        probs_BV = self.probs_BV[: len(scaled_BV)]
        torch.softmax(scaled_BV, dim=-1, out=probs_BV)
        rounding_B = probs_BV.sum(-1).log()
        return probs_BV, scaled_BV.amax(-1) - probs_BV.amax(-1).log() + rounding_B


def entropy(scaled_BV: Tensor, probs_BV: Tensor, logsumexp_B: Tensor) -> Tensor:
    """H = -sum p log p [B] in nats, from a block's softmax; `scaled_BV` is overwritten.

    An id whose probability underflows to 0 adds 0 (its log-prob is finite).
    """
    return -scaled_BV.sub_(logsumexp_B[:, None]).mul_(probs_BV).sum(-1)
