"""A loss per token and its gradient in one pass from hidden states: three products with the LM head, no [N, V] tensor.

The loss is a weighted sum over tokens whose weights are known in the forward pass. So each chunk's gradient is formed
while its probabilities exist, and the backward pass only hands the sums on.
"""

from dataclasses import dataclass
from typing import Protocol

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
    """Loss and values of all rows, nats."""

    loss: Tensor
    """`sum_t w_t l_t`, float32 scalar; the only field with a gradient."""
    token_losses: Tensor
    """l_t, float32 [N]."""
    log_p: Tensor
    """Log-probs float32 [N, M] at the ids asked for."""
    topk_ids: Tensor
    """The student's most likely ids, int64 [N, K], the most likely first."""


class ChunkLoss(Protocol):
    """Losses of a chunk of rows; turns the chunk's logits into the gradient of the weighted losses, in place."""

    @property
    def weights_N(self) -> Tensor:
        """w_t float32 [N]."""
        ...

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Token losses [C], log-probs [C, M] and top-k ids [C, K]; `logits_CV` becomes d loss / d logits."""
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
        topk: how many of the student's most likely ids to return.
        rows: rows of logits that exist at one time; None: a number that suits the device.

    No mean is taken: the denominator is in w_t. The loss can be differentiated once (RuntimeError after that).
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
        divergence: reverse KL(p || q), forward KL(q || p), or jsd with `beta`.
        weights_N: w_t, without gradient.
        tokens_N: the sampled tokens, whose log-probs are returned [N, 1].
        temperature_N: divides the student's logits; None: 1.
        rows: rows of logits that exist at one time; None: a number that suits the device.

    No mean is taken: the denominator is in w_t. The loss can be differentiated once (RuntimeError after that).

    Raises:
        ValueError: jsd with beta outside (0, 1).
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
    """One pass over all rows, with gradients for hidden states, weight and bias."""
    sizes = ChunkSizes.of(head.weight, rows)
    loss, token_losses, log_p, topk_ids = _LossInForward.apply(
        hidden_NH, head.weight, head.bias, head.limit, chunk_loss, sizes
    )
    return FusedLoss(loss, token_losses, log_p, topk_ids)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of hidden states, weight and bias; None where none is asked for."""


class _Context(Protocol):
    """The part of autograd's context that `_LossInForward` uses, with its own attribute."""

    gradients: Gradients | None

    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _LossInForward(torch.autograd.Function):
    """Forms all gradients in the forward pass; the backward pass scales them by the gradient of the loss."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        limit: int,
        chunk_loss: ChunkLoss,
        sizes: ChunkSizes,
    ) -> tuple[Tensor, ...]:
        space = Workspace.cut(weight_VH, bias_V, limit, sizes, len(hidden_NH))
        sums = GradientSums(ctx.needs_input_grad[:3], hidden_NH, weight_VH, bias_V, limit)
        values = []
        for chunk in parts(len(hidden_NH), space.rows):
            logits_CV = space.logits(hidden_NH[chunk])
            values.append(chunk_loss(space, logits_CV, chunk))
            sums.add(logits_CV, chunk)  # the chunk loss left d loss / d logits there
        losses_N, log_p_NM, topk_ids_NK = (torch.cat(column) for column in zip(*values, strict=True))
        # Kept on the context, not by save_for_backward: the backward pass gives them away and drops the last reference.
        ctx.gradients = sums.results()
        ctx.mark_non_differentiable(losses_N, log_p_NM, topk_ids_NK)
        return (losses_N * chunk_loss.weights_N).sum(), losses_N, log_p_NM, topk_ids_NK

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss was differentiated before; its gradients are given away once")
        # Given away and scaled in place: a copy of the weight's gradient is as large as the LM head.
        gradients, ctx.gradients = ctx.gradients, None
        factor = grads[0]
        if factor.item() == 1.0:
            return (*gradients, None, None, None)
        return (*(None if grad is None else grad.mul_(factor.to(grad.dtype)) for grad in gradients), None, None, None)
