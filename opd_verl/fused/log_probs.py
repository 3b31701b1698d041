"""Log-probs at chosen ids and entropies, from hidden states, differentiable by any loss; logits [N, V] never exist.

The backward pass forms the logits once more, in chunks: four products with the LM head instead of three. For a loss
that is known in the forward pass, `opd_verl.fused.loss` needs three.
"""

from typing import Protocol

import torch
from torch import Tensor

from opd_verl.fused.rows import ChunkSizes, HeadWeights, Workspace, entropy, parts, within
from opd_verl.fused.sums import GradientSums


def fused_log_probs(
    hidden_NH: Tensor,
    head: HeadWeights,
    ids_NM: Tensor,
    temperature_N: Tensor | None = None,
    with_entropy: bool = False,
    rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p_t(v) at the M ids of every row, and H_t = -sum p log p; gradients reach hidden states, weight and bias.

    Args:
        hidden_NH: last hidden states of the rows, in the head's dtype.
        head: the LM head, cut to `limit` ids.
        ids_NM: integers; -1 gives the log-prob of id 0, for the caller to mask.
        temperature_N: divides each row's logits; None: 1.
        with_entropy: whether H_t is returned.
        rows: rows of logits that exist at one time; None: a number that suits the device.

    Returns:
        log-probs float32 [N, M] and entropies float32 [N] (or None), nats.
    """
    sizes = ChunkSizes.of(head.weight, rows)
    ids_NM = ids_NM.long().clamp(min=0)
    log_p_NM, entropy_N = _LogProbs.apply(
        hidden_NH, head.weight, head.bias, ids_NM, temperature_N, head.limit, with_entropy, sizes
    )
    return log_p_NM, entropy_N if with_entropy else None


class _Context(Protocol):
    """The part of autograd's context that `_LogProbs` uses, with its own attributes."""

    limit: int
    with_entropy: bool
    sizes: ChunkSizes

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _LogProbs(torch.autograd.Function):
    """Gradients by hand: d log p_i / dz_v = 1[v = i] - p_v, dH / dz_v = -p_v (log p_v + H), over the temperature."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_NM: Tensor,
        temperature_N: Tensor | None,
        limit: int,
        with_entropy: bool,
        sizes: ChunkSizes,
    ) -> tuple[Tensor, Tensor]:
        total = len(hidden_NH)
        space = Workspace.cut(weight_VH, bias_V, limit, sizes, total)
        log_p_NM = torch.empty(ids_NM.shape, dtype=torch.float32, device=hidden_NH.device)
        entropy_N = torch.empty(total if with_entropy else 0, dtype=torch.float32, device=hidden_NH.device)
        for chunk in parts(total, space.rows):
            logits_CV = space.logits(hidden_NH[chunk])
            for block in parts(len(logits_CV), space.block):
                rows = within(chunk, block)
                heat_B = None if temperature_N is None else temperature_N[rows]
                scaled_BV, probs_BV, lse_B = space.softmax(logits_CV[block], heat_B)
                log_p_NM[rows] = scaled_BV.gather(-1, ids_NM[rows]) - lse_B[:, None]
                if with_entropy:
                    entropy_N[rows] = entropy(scaled_BV, probs_BV, lse_B)
        # Inputs and entropies are kept. The logits of all rows would be the largest tensor of the step.
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_NM, temperature_N, entropy_N)
        ctx.limit, ctx.with_entropy, ctx.sizes = limit, with_entropy, sizes
        return log_p_NM, entropy_N

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, ids_NM, temperature_N, entropy_N = ctx.saved_tensors
        slope_NM, slope_N = grads
        space = Workspace.cut(weight_VH, bias_V, ctx.limit, ctx.sizes, len(hidden_NH))
        sums = GradientSums(ctx.needs_input_grad[:3], hidden_NH, weight_VH, bias_V, ctx.limit)
        for chunk in parts(len(hidden_NH), space.rows):
            logits_CV = space.logits(hidden_NH[chunk])
            for block in parts(len(logits_CV), space.block):
                rows = within(chunk, block)
                heat_B = None if temperature_N is None else temperature_N[rows]
                scaled_BV, probs_BV, lse_B = space.softmax(logits_CV[block], heat_B)
                # dz = scatter(slope) - p (sum of slopes + entropy slope (log p + H)), formed in the softmax's buffer.
                factor_BV = slope_NM[rows].sum(-1, keepdim=True)
                if ctx.with_entropy:
                    log_p_BV = scaled_BV.sub_((lse_B - entropy_N[rows])[:, None])
                    factor_BV = log_p_BV.mul_(slope_N[rows, None]).add_(factor_BV)
                dlogits_BV = probs_BV.mul_(factor_BV).neg_().scatter_add_(-1, ids_NM[rows], slope_NM[rows])
                logits_CV[block] = dlogits_BV if heat_B is None else dlogits_BV.div_(heat_B[:, None])
            sums.add(logits_CV, chunk)
        return (*sums.results(), None, None, None, None, None)
