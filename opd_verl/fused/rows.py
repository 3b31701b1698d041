"""Chunks of rows: the buffers that every pass over the LM head reuses, and the softmax within them.

Logits of all rows [N, V] would be the largest tensor of a step. A pass goes chunk by chunk: one matrix product gives C
rows of logits in the head's dtype, and elementwise work turns them to float32 block by block, B rows at a time.
Shapes: N rows in all, C rows of a chunk, B rows of a block, V ids, M columns. Nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_ROWS = {8: 256, 4: 512, 2: 1024}
"""Rows of a chunk on CPU, by bytes per element of the head. A 16-bit weight gradient is rounded after every chunk, so
its chunks are larger and fewer."""
DEVICE_ROWS = 2048
"""Rows of a chunk on a GPU: a matrix product that fills it, and 0.6 GB of 16-bit logits at 150,000 ids."""
CPU_BLOCK, DEVICE_BLOCK = 16, 512
"""Rows of a block. Its two float32 tensors [B, V] take 20 MB on CPU and 0.6 GB on a GPU, at 150,000 ids."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The student's LM head: logits(h) = weight h + bias over the ids 0..limit-1.

    weight and bias are the parameters themselves, so that gradients reach them.
    """

    weight: Tensor
    """[>= limit, H]; the rows from `limit` on are padding without a token."""
    bias: Tensor | None
    """[>= limit] or None."""
    limit: int
    """Number of the tokenizer's ids: the softmax is over these ids alone."""


@dataclass(frozen=True)
class ChunkSizes:
    """Sizes of a pass."""

    rows: int
    """Rows of a chunk: one matrix product."""
    block: int
    """Rows of a block: float32 work within a chunk."""

    @classmethod
    def of(cls, weight: Tensor, rows: int | None = None) -> "ChunkSizes":
        """`rows` rows in a chunk; None: a number that suits the head's device and dtype."""
        on_cpu, size = weight.device.type == "cpu", weight.element_size()
        if rows is None:
            rows = CPU_ROWS[size] if on_cpu else DEVICE_ROWS
        return cls(rows, min(rows, CPU_BLOCK if on_cpu else DEVICE_BLOCK))


def parts(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..total; for total 0 one empty slice, so that every pass has a chunk."""
    for first in range(0, max(total, 1), size):
        yield slice(first, min(first + size, total))


def within(chunk: slice, block: slice) -> slice:
    """The rows of a block of a chunk, counted from the first row of all."""
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
        """Buffers for the first `limit` ids of a head."""
        return cls(weight_VH[:limit], None if bias_V is None else bias_V[:limit], sizes, total_rows)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """weight h + bias [C, V], in the head's dtype; valid until the next call."""
        out_CV = self.logits_CV[: len(hidden_CH)]
        torch.mm(hidden_CH, self.weight_VH.t(), out=out_CV)
        return out_CV if self.bias_V is None else out_CV.add_(self.bias_V)

    def softmax(self, logits_BV: Tensor, temperature_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled logits [B, V], probabilities [B, V] and logsumexp [B] of a block, float32.

        The first two are buffers of this workspace: they may be overwritten, and are valid until the next call.
        """
        scaled_BV = self.load(logits_BV)
        if temperature_B is not None:
            scaled_BV.div_(temperature_B[:, None])
        return scaled_BV, *self.normalise(scaled_BV)

    def load(self, logits_BV: Tensor) -> Tensor:
        """A float32 copy of a block, valid until the next call."""
        return self.scaled_BV[: len(logits_BV)].copy_(logits_BV)

    def normalise(self, scaled_BV: Tensor) -> tuple[Tensor, Tensor]:
        """softmax [B, V] and logsumexp [B] of scaled logits [B, V]."""
        # torch.logsumexp would read and exponentiate the block once more. The softmax holds the answer already:
        # logsumexp = max z - log max p, and the largest p never underflows. sum p differs from 1 by rounding, 1e-6 over
        # 150,000 ids, which `rounding_B` puts right.
        probs_BV = self.probs_BV[: len(scaled_BV)]
        torch.softmax(scaled_BV, dim=-1, out=probs_BV)
        rounding_B = probs_BV.sum(-1).log()
        return probs_BV, scaled_BV.amax(-1) - probs_BV.amax(-1).log() + rounding_B


def entropy(scaled_BV: Tensor, probs_BV: Tensor, logsumexp_B: Tensor) -> Tensor:
    """H = -sum p log p [B] in nats, from a block's softmax; `scaled_BV` is overwritten."""
    # An id whose probability underflows to 0 adds 0, not NaN: its log-prob z - logsumexp is finite.
    return -scaled_BV.sub_(logsumexp_B[:, None]).mul_(probs_BV).sum(-1)
