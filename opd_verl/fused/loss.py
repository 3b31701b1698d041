"""A loss per token and its gradient in one pass from hidden states: three products with the LM head, no [N, V] tensor.

Where the loss is a weighted sum over tokens whose weights are known beforehand, each chunk's gradient can be formed
while its probabilities are at hand; the backward pass only hands it on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.rows import ChunkSizes, HeadWeights, Workspace, parts
from opd_verl.fused.sums import GradientSums
from opd_verl.fused.topk import block_topk
from opd_verl.objectives.divergence import full_slope
from opd_verl.objectives.names import Divergence

TokenLoss = Callable[[Tensor, slice], Tensor]
"""(log-probs [C, M] of a chunk, which rows these are) -> loss per token [C]; differentiable."""


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
    """`sum_t w_t l_t` for a loss that reads the log-probs at M ids per token (METHODS 1.1, 1.3-1.5).

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
    chunk_loss = _SupportChunk(ids_NM.long().clamp(min=0), token_loss, weights_N.float(), temperature_N, topk)
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
    """`sum_t w_t D(p_t, q_t)` over the whole vocabulary (METHODS 1.2), both sides from hidden states.

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
    sizes = ChunkSizes.of(hidden_NH.device, rows)
    space = Workspace(teacher_head.weight, teacher_head.bias, sizes, len(hidden_NH))
    chunk_loss = _FullChunk(
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
    sizes = ChunkSizes.of(hidden_NH.device, rows)
    found: Any = _LossInForward.apply(hidden_NH, head.weight, head.bias, head.limit, chunk_loss, sizes)
    return FusedLoss(*found)


@dataclass(frozen=True, eq=False)
class _SupportChunk:
    """dz = (scatter(g) - p sum g) / temperature with g = w d l / d log p."""

    ids_NM: Tensor
    token_loss: TokenLoss
    weights_N: Tensor
    temperature_N: Tensor | None
    topk: int

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        ids_CM = self.ids_NM[chunk]
        log_p_CM = torch.empty(ids_CM.shape, dtype=torch.float32, device=logits_CV.device)
        topk_ids_CK = torch.empty(len(ids_CM), self.topk, dtype=torch.long, device=logits_CV.device)
        for block in parts(len(logits_CV), space.block):
            heat_B = None if self.temperature_N is None else self.temperature_N[chunk][block]
            scaled_BV, probs_BV, lse_B = space.softmax(logits_CV[block], heat_B)
            log_p_CM[block] = scaled_BV.gather(-1, ids_CM[block]) - lse_B[:, None]
            if self.topk:
                topk_ids_CK[block] = block_topk(scaled_BV, self.topk)[1]
            logits_CV[block] = probs_BV
        losses_C, slope_CM = self.slopes(log_p_CM, chunk)
        if self.temperature_N is not None:
            slope_CM = slope_CM / self.temperature_N[chunk, None]
        total_C1 = slope_CM.sum(-1, keepdim=True)
        logits_CV.mul_(-total_C1)
        # At the support the two terms nearly cancel where the student is close: formed in float32 from log p itself.
        same_CMM = ids_CM[:, :, None] == ids_CM[:, None, :]
        at_ids_CM = (same_CMM * slope_CM[:, None, :]).sum(-1) - log_p_CM.exp() * total_C1
        logits_CV.scatter_(-1, ids_CM, at_ids_CM.to(logits_CV.dtype))
        return losses_C, log_p_CM, topk_ids_CK

    def slopes(self, log_p_CM: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        """l_t [C] and w_t d l_t / d log p [C, M]."""
        with torch.enable_grad():
            leaf_CM = log_p_CM.detach().requires_grad_()
            losses_C = self.token_loss(leaf_CM, chunk).float()
            (slope_CM,) = torch.autograd.grad((losses_C * self.weights_N[chunk]).sum(), leaf_CM)
        return losses_C.detach(), slope_CM


@dataclass(frozen=True, eq=False)
class _FullChunk:
    """dz = w d D / dz / temperature, closed form (`full_slope`)."""

    ids_NM: Tensor
    teacher_hidden_NG: Tensor
    teacher_head: LMHead
    teacher_space: Workspace
    divergence: Divergence
    beta: float
    weights_N: Tensor
    temperature_N: Tensor | None

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        ids_CM = self.ids_NM[chunk]
        log_p_CM = torch.empty(ids_CM.shape, dtype=torch.float32, device=logits_CV.device)
        losses_C = torch.empty(len(ids_CM), dtype=torch.float32, device=logits_CV.device)
        teacher_CV = self.teacher_space.logits(self.teacher_hidden_NG[chunk])
        for block in parts(len(logits_CV), space.block):
            heat_B = None if self.temperature_N is None else self.temperature_N[chunk][block]
            scaled_BV, _, lse_B = space.softmax(logits_CV[block], heat_B)
            log_p_BV = scaled_BV.sub_(lse_B[:, None])
            log_p_CM[block] = log_p_BV.gather(-1, ids_CM[block])
            log_q_BV = self.teacher_head.finish(teacher_CV[block]).log_softmax(-1)
            losses_C[block], slope_BV = full_slope(log_p_BV, log_q_BV, self.divergence, self.beta)
            weight_B = self.weights_N[chunk][block]
            slope_BV.mul_((weight_B if heat_B is None else weight_B / heat_B)[:, None])
            logits_CV[block] = slope_BV
        return losses_C, log_p_CM, ids_CM.new_empty(len(ids_CM), 0)


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
        space = Workspace(weight_VH[:limit], None if bias_V is None else bias_V[:limit], sizes, len(hidden_NH))
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
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss was differentiated before; its gradients are given away once")
        found, ctx.gradients = ctx.gradients, None
        if grad_loss.item() != 1.0:
            found = tuple(None if grad is None else grad.mul_(grad_loss.to(grad.dtype)) for grad in found)
        return (*found, None, None, None)
