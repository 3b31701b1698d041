"""Slow references of the objectives for one token, written from the definitions in opd_verl/objectives/README.md.

Explicit probabilities in float64, Python loops, autograd. Nothing here is shared with the code under test.
"""

import torch
from torch import Tensor

from opd_verl.objectives.names import Divergence, Tail, Weighting


def reference_divergence(
    p: Tensor, q: Tensor, ids: list[int], divergence: Divergence, tail: Tail, beta: float
) -> Tensor:
    """The divergence of one token on a support (objectives/README.md 3; renorm_teacher with forward is EOPD eq. 10).

    Args:
        p: the student's probabilities [V], float64, sum 1; carries the gradient.
        q: the teacher's [V].
        ids: the support, distinct; empty: the result is 0.
        divergence: reverse KL(p || q), forward KL(q || p), or jsd with the mixture `beta q + (1 - beta) p`.
        tail: what happens to the probability outside `ids`.
        beta: the teacher's share of the mixture.

    Returns:
        A scalar, nats.
    """
    if not ids:
        return p.sum() * 0.0
    outside = [v for v in range(len(p)) if v not in ids]
    student, teacher = [p[v] for v in ids], [q[v] for v in ids]
    if tail is Tail.renorm:
        student = [mass / p[ids].sum() for mass in student]
    if tail in (Tail.renorm, Tail.renorm_teacher):
        teacher = [mass / q[ids].sum() for mass in teacher]
    if tail is Tail.bucket and outside:
        student, teacher = [*student, p[outside].sum()], [*teacher, q[outside].sum()]
    total = p.sum() * 0.0
    for a, b in zip(student, teacher, strict=True):
        total = total + _phi(a, b, divergence, beta, generalised=tail is Tail.generalised)
    return total


def reference_full(p: Tensor, q: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """The divergence of one token over the whole vocabulary [V] (objectives/README.md 2), a scalar, nats."""
    mixture = beta * q + (1.0 - beta) * p
    if divergence is Divergence.reverse:
        return (p * (p / q).log()).sum()
    if divergence is Divergence.forward:
        return (q * (q / p).log()).sum()
    return beta * (q * (q / mixture).log()).sum() + (1.0 - beta) * (p * (p / mixture).log()).sum()


def reference_policy_gradient(
    p: Tensor, p_old: Tensor, q: Tensor, ids: list[int], weighting: Weighting, eps_low: float, eps_high: float
) -> Tensor:
    """The clipped surrogate of one token, summed over its support (objectives/README.md 4), a scalar.

    Args:
        p: the student's probabilities [V], float64; carries the gradient.
        p_old: those of the student that sampled the rollout.
        q: the teacher's.
        ids: the support, distinct; empty: the result is 0.
        weighting: the weight of an id's advantage.
        eps_low: clip range below 1.
        eps_high: clip range above 1.
    """
    total = p.sum() * 0.0
    for v in ids:
        weight = {
            Weighting.student: p_old[v] / p_old[ids].sum(),
            Weighting.teacher: q[v] / q[ids].sum(),
            Weighting.uniform: torch.ones_like(q[v]),
        }[weighting]
        advantage = (weight * (q[v] / p_old[v]).log()).detach()
        ratio = p[v] / p_old[v].detach()
        bounded = ratio.clamp(1.0 - eps_low, 1.0 + eps_high)
        total = total - torch.minimum(ratio * advantage, bounded * advantage)
    return total


def _phi(a: Tensor, b: Tensor, divergence: Divergence, beta: float, generalised: bool) -> Tensor:
    """The summand of student mass a and teacher mass b."""
    if divergence is Divergence.reverse:
        return _relative(a, b, generalised)
    if divergence is Divergence.forward:
        return _relative(b, a, generalised)
    m = beta * b + (1.0 - beta) * a
    return beta * _relative(b, m, generalised) + (1.0 - beta) * _relative(a, m, generalised)


def _relative(a: Tensor, b: Tensor, generalised: bool) -> Tensor:
    """`a log(a / b)`, and `- a + b` if generalised; `0 log 0 = 0`."""
    plain = a * 0.0 if a.item() == 0.0 else a * (a / b).log()
    return plain - a + b if generalised else plain
