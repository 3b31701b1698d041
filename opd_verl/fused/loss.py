"""A loss per token and its gradient in one pass from hidden states: three products with the LM head, no [N, V] tensor.

Where the loss is a weighted sum over tokens whose weights are known beforehand, each chunk's gradient can be formed
while its probabilities are at hand; the backward pass only hands it on.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from opd_verl.fused.full_chunk import FullChunk
from opd_verl.fused.head import LMHead
from opd_verl.fused.rows import ChunkSizes, HeadWeights, Workspace, parts
from opd_verl.fused.sums import GradientSums
from opd_verl.fused.support_chunk import SupportChunk, TokenLoss
from opd_verl.objectives.names import Divergence


@dataclass(frozen=True, eq=False)
class FusedLoss:
    """What one pass gives.

    loss: sum_t w_t l_t, a scalar with gradient; token_losses: l_t float32 [N], log_p: log-probs float32 [N, M] at the
    ids asked for, topk_ids: int64 [N, K]; all of these detached.
    """

    loss: Tensor
    token_losses: Tensor
    log_p: Tensor
    topk_ids: Tensor


class ChunkLoss(Protocol):
    """Turns a chunk's logits into the gradient of its weighted losses, in place."""

    @property
    def weights_N(self) -> Tensor:
        """w_t float32 [N]."""
        ...

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """(token losses [C], log-probs [C, M], top-k ids [C, K]); `logits_CV` becomes d loss / d logits."""
        ...


def fused_support_loss(
    hidden_NH: Tensor,
    head: HeadWeights,
    ids_NM: Tensor,
    token_loss: TokenLoss,
    weights_N: Tensor,
    temperature_N: Tensor | None = None,
    topk: int = 0,
    rows: int | None = None,
) -> FusedLoss:
    """`sum_t w_t l_t` for a loss that reads the log-probs at M ids per token (objectives/README.md 1, 3 to 5).

    Args:
        hidden_NH: last hidden states of the rows, in the head's dtype.
        head: the LM head, cut to `limit` ids.
        ids_NM: integers; at -1 the log-prob of id 0 is given, for `token_loss` to leave out.
        token_loss: the loss per token from a chunk's log-probs float32 [C, M]; its gradient is taken by autograd.
        weights_N: w_t, without gradient: mask, denominators and coefficients.
        temperature_N: divides each row's logits; None: 1.
        topk: how many of the student's most likely ids to return beside.
        rows: rows of logits that exist at one time; None: what suits the device.
    """
    chunk_loss = SupportChunk(ids_NM.long().clamp(min=0), token_loss, weights_N.float(), temperature_N, topk)
    return _apply(hidden_NH, head, chunk_loss, rows)


def fused_full_divergence(
    hidden_NH: Tensor,
    head: HeadWeights,
    teacher_hidden_NG: Tensor,
    teacher_head: LMHead,
    divergence: Divergence,
    weights_N: Tensor,
    tokens_N: Tensor,
    beta: float = 0.5,
    temperature_N: Tensor | None = None,
    rows: int | None = None,
) -> FusedLoss:
    """`sum_t w_t D(p_t, q_t)` over the whole vocabulary (objectives/README.md 2), both sides from hidden states.

    Args:
        hidden_NH: the student's last hidden states.
        head: the student's LM head.
        teacher_hidden_NG: the teacher's last hidden states, G wide, in its head's dtype; no gradient.
        teacher_head: the teacher's LM head over the same ids, its temperature included.
        divergence: reverse, forward or jsd, with `beta`.
        weights_N: w_t, without gradient.
        tokens_N: the sampled tokens, whose log-probs are returned [N, 1].
        temperature_N: divides the student's logits; None: 1.
        rows: rows of logits that exist at one time; None: what suits the device.
    """
    sizes = ChunkSizes.of(head.weight, rows)
    space = Workspace(teacher_head.weight, teacher_head.bias, sizes, len(hidden_NH))
    chunk_loss = FullChunk(
        ids_NM=tokens_N.long()[:, None],
        teacher_hidden_NG=teacher_hidden_NG,
        teacher_head=teacher_head,
        teacher_space=space,
        divergence=divergence,
        beta=beta,
        weights_N=weights_N.float(),
        temperature_N=temperature_N,
    )
    return _apply(hidden_NH, head, chunk_loss, rows)


def _apply(hidden_NH: Tensor, head: HeadWeights, chunk_loss: ChunkLoss, rows: int | None) -> FusedLoss:
    sizes = ChunkSizes.of(head.weight, rows)
    found: Any = _LossInForward.apply(hidden_NH, head.weight, head.bias, head.limit, chunk_loss, sizes)
    return FusedLoss(*found)


class _LossInForward(torch.autograd.Function):
    """Gradients in the forward pass; the backward pass multiplies them by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        limit: int,
        chunk_loss: ChunkLoss,
        sizes: ChunkSizes,
    ) -> tuple[Tensor, ...]:
        space = Workspace.cut(weight_VH, bias_V, limit, sizes, len(hidden_NH))
        sums = GradientSums(ctx.needs_input_grad[:3], hidden_NH, weight_VH, bias_V, limit)
        found, total = [], hidden_NH.new_zeros((), dtype=torch.float32)
        for chunk in parts(len(hidden_NH), space.rows):
            logits_CV = space.logits(hidden_NH[chunk])
            found.append(chunk_loss(space, logits_CV, chunk))
            sums.add(logits_CV, chunk)
        losses_N, log_p_NM, topk_ids_NK = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.gradients = sums.results()
        ctx.mark_non_differentiable(losses_N, log_p_NM, topk_ids_NK)
        return total + (losses_N * chunk_loss.weights_N).sum(), losses_N, log_p_NM, topk_ids_NK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss was differentiated before; its gradients are given away once")
        found, ctx.gradients = ctx.gradients, None
        factor = grads[0]
        if factor.item() != 1.0:
            found = tuple(None if grad is None else grad.mul_(factor.to(grad.dtype)) for grad in found)
        return (*found, None, None, None)
