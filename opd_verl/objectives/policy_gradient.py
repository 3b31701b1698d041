"""The policy-gradient top-k of Rethinking's published runs (objectives/README.md 4, `paper_compat`)."""

import torch
from torch import Tensor

from opd_verl.objectives.clipped import clipped_surrogate
from opd_verl.objectives.names import Weighting


def policy_gradient_topk(
    log_p: Tensor,
    log_p_old: Tensor,
    log_q: Tensor,
    weighting: Weighting,
    eps_low: float,
    eps_high: float,
    member: Tensor | None = None,
) -> Tensor:
    """`sum_{v in S} max(-ratio(v) A(v), -clip(ratio(v)) A(v))`, `A(v) = -w(v) (log p_old(v) - log q(v))`.

    This is a surrogate, not a divergence. With `l = log p_old - log q`, its gradient at ratio 1 is
    `sum_S w l grad log p`. The exact gradient of the renormalised reverse KL is `sum_S w (l - lbar) grad log p` with
    `w = pbar`, `lbar = sum_S w l`. The surrogate drops the baseline lbar, which adds `lbar grad log sum_S p`: it
    also pushes the student's mass out of S where lbar > 0, and into S where lbar < 0. For the exact gradient use
    `support_divergence` (objectives/README.md 3).

    Args:
        log_p: student log-probs of the full softmax at the ids [..., K], nats; carries the gradient.
        log_p_old: log-probs [..., K] of the student that sampled the rollout; detached.
        log_q: teacher log-probs [..., K] at these ids; detached.
        weighting: chooses w: p_old renormalised on S (`student`), q renormalised on S (`teacher`), or 1 (`uniform`).
        eps_low: clip range below 1, in [0, 1).
        eps_high: clip range above 1, >= 0.
        member: bool [..., K], True where the id belongs to S; None: everywhere.

    Returns:
        The loss of each token [...], float32, nats; 0 with zero gradient where no id is a member. No mean is taken.
    """
    member = torch.ones_like(log_p, dtype=torch.bool) if member is None else member
    # Ids outside S may hold any value, also NaN: they become 0 before the first product, or the gradient would be NaN.
    log_p, log_p_old, log_q = (torch.where(member, x.float(), 0.0) for x in (log_p, log_p_old, log_q))
    weights = support_weights(log_p_old, log_q, weighting, member)
    loss, _, _ = clipped_surrogate(log_p, log_p_old, -weights * (log_p_old - log_q), eps_low, eps_high)
    return torch.where(member, loss, 0.0).sum(dim=-1)


def support_weights(log_p_old: Tensor, log_q: Tensor, weighting: Weighting, member: Tensor) -> Tensor:
    """w [..., K] of the support tokens; a position without members gets finite values that are not read."""
    if weighting is Weighting.uniform:
        return torch.ones_like(log_q)
    logs = log_p_old if weighting is Weighting.student else log_q
    return logs.masked_fill(~member, torch.finfo(logs.dtype).min).softmax(dim=-1)
