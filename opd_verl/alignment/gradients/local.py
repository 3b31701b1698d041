"""Local gradients at a node, all of one form (Unmasking eq. 2.11), and how they agree (eq. 2.12).

The gradient of sum_k p_k f_k by the student's logit z_j is `p_j (f_j - sum_k p_k f_k)`. Objectives differ in f:

    ideal            P_succ                                            eq. 2.3
    gkd              log q - log p                                     eq. 2.8 with the sign that training follows
    single_sample    log q - log p - 1 of the sampled tokens           eq. 2.9
    dr_grpo          advantages of the sampled rollouts                eq. 2.4
    minillm          reward-to-go of the sampled rollouts, less 1      eq. 2.10
    any objective of `opd_verl.objectives`: minus its gradient by the logits, divided by p_j

Everything is restricted to S_u, the children with enough visits, and p is renormalised there, as in eq. 2.1. A positive
entry makes its token more probable. See alignment/README.md 4.

Shapes: M nodes, S children, K known ids. float64; False in `member` marks padding and children with too few visits.
"""

import torch
from torch import Tensor

from opd_verl.objectives.divergence import REST_FLOOR, support_divergence
from opd_verl.objectives.names import Divergence, Tail


def renormalised(p: Tensor, member: Tensor) -> Tensor:
    """p over S_u [M, S]: sums to 1 over the members, 0 elsewhere."""
    inside = torch.where(member, p, 0.0)
    return inside / inside.sum(-1, keepdim=True)


def local_gradient(p: Tensor, f: Tensor, member: Tensor) -> Tensor:
    """`p_j (f_j - sum_k p_k f_k)` over S_u [M, S] (eq. 2.11)."""
    p, f = renormalised(p, member), torch.where(member, f, 0.0)
    return p * (f - (p * f).sum(-1, keepdim=True))


def sampled_gradient(p: Tensor, weight: Tensor, count: Tensor, member: Tensor) -> Tensor:
    """`1/N sum_i w_i (delta(r_i, j) - p_j)` over the N rollouts that took a token of S_u, [M, S] (eq. 2.4, 2.9, 2.10).

    Args:
        weight: [M, S] sum of w_i over the rollouts that took each token.
        count: [M, S] number of those rollouts.
    """
    weight, count = (torch.where(member, values, 0.0) for values in (weight, count))
    total, rollouts = weight.sum(-1, keepdim=True), count.sum(-1, keepdim=True)
    return (weight - renormalised(p, member) * total) / rollouts.clamp(min=1.0)


def dr_grpo_weight(count: Tensor, successes: Tensor, mean: float) -> Tensor:
    """Sum of `A_i = (R_i - mean(R)) / std(R)` over the rollouts that took each token [M, S]; R is 0 or 1 (eq. 2.4)."""
    # All rollouts right or all wrong: no advantage (verl's GRPO then divides 0 by a small number).
    deviation = (mean * (1.0 - mean)) ** 0.5
    return (successes - mean * count) / deviation if deviation else torch.zeros_like(count)


def objective_pull(
    log_p: Tensor, log_q: Tensor, chosen: Tensor, divergence: Divergence, tail: Tail, beta: float
) -> Tensor:
    """f of an exact divergence on a support: minus its gradient by the student's logits, divided by p, [M, K].

    Args:
        log_p, log_q: [M, K] at the known ids; the rest of the vocabulary is one more symbol.
        chosen: [M, K] ids that the objective looks at.
    """
    # log p is a valid choice of logits, and with the rest as one more logit their softmax is p itself: autograd then
    # gives the true gradient by the known logits, with every tail of an objective.
    rest = torch.log((1.0 - log_p.exp().sum(-1, keepdim=True)).clamp(min=REST_FLOOR))
    logits = torch.cat([log_p, rest], -1).requires_grad_()
    with torch.enable_grad():
        inside = logits.log_softmax(-1)[:, :-1]
        loss = support_divergence(inside, log_q, divergence, tail, beta, member=chosen).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    # Divided by p, so that `local_gradient` can multiply it with p renormalised on S_u, as it does for every objective.
    return torch.where(log_p.isfinite(), -slope[:, :-1] / log_p.exp(), 0.0)


def cosine(ideal: Tensor, other: Tensor) -> Tensor:
    """Cosine of two gradients [M] (eq. 2.12); NaN where either is 0."""
    lengths = ideal.norm(dim=-1) * other.norm(dim=-1)
    return torch.where(lengths > 0, (ideal * other).sum(-1) / lengths, torch.nan)


def teacher_advantage(p: Tensor, q: Tensor, p_succ: Tensor, member: Tensor) -> Tensor:
    """`sum_k q_k P_k - sum_k p_k P_k`, p and q renormalised over S_u, [M] (eq. 2.1); NaN for fewer than 2 members."""
    p_succ = torch.where(member, p_succ, 0.0)
    gain = ((renormalised(q, member) - renormalised(p, member)) * p_succ).sum(-1)
    return torch.where(member.sum(-1) >= 2, gain, torch.nan)


def success_range(p_succ: Tensor, member: Tensor) -> Tensor:
    """Largest less smallest P_succ over S_u [M]; NaN if S_u is empty."""
    high = p_succ.masked_fill(~member, -torch.inf).amax(-1)
    low = p_succ.masked_fill(~member, torch.inf).amin(-1)
    return torch.where(member.any(-1), high - low, torch.nan)


def apart(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """Distances of student and teacher at a node [M]: `kl` KL(p || q) and `js` in nats, `l2` |p - q|, and `similarity`,
    the cosine of p and q (Unmasking 4.3).

    Args:
        log_p, log_q: [M, K] at the known ids (-inf: none there); the rest of the vocabulary is one more symbol.
    """
    known = log_p.isfinite()
    rest_is_known = torch.ones(len(log_p), 1, dtype=torch.bool)
    sides = []
    for side in (log_p, log_q):
        inside = torch.where(known, side, -torch.inf)
        # The known probabilities can sum to 1 or, rounded, a little more: the floor keeps the logarithm finite.
        rest = torch.log((1.0 - inside.exp().sum(-1, keepdim=True)).clamp(min=REST_FLOOR))
        sides.append(torch.cat([inside, rest], -1))
    member = torch.cat([known, rest_is_known], -1)
    p, q = (side.exp() for side in sides)
    return {
        "kl": support_divergence(sides[0], sides[1], Divergence.reverse, Tail.none, member=member),
        "js": support_divergence(sides[0], sides[1], Divergence.jsd, Tail.none, member=member),
        "l2": (p - q).norm(dim=-1),
        "similarity": (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1)),
    }
