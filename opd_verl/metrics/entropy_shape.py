"""Entropy shape and entropy gap: where along a rollout student and teacher are uncertain (Capacity 5.2, Rethinking).

Shapes: B rollouts, R response tokens. Full-vocabulary entropies in nats, detached. Results are float64 [B], a value for
each rollout; NaN where undefined.
"""

import torch
from torch import Tensor

from opd_verl.credit.token_masks import top_share
from opd_verl.metrics.ratio import token_means

FORK_SHARE = 0.2
"""Share of a rollout's positions that are its fork tokens (Capacity 5.2)."""


def entropy_correlation(student_entropy: Tensor, teacher_entropy: Tensor, mask: Tensor) -> Tensor:
    """rho: Pearson correlation of the two entropy sequences of a rollout (Capacity eq. 4).

    Undefined for fewer than two tokens and where a sequence is constant.
    """
    sides = [centred(values, mask) for values in (student_entropy, teacher_entropy)]
    first, second = (side.square().sum(-1).sqrt() for side in sides)
    rho = (sides[0] * sides[1]).sum(-1) / (first * second)
    # A norm of 0 is no test for a constant row: the mean of equal values may round, and the norm is then tiny, not 0.
    flat = is_constant(student_entropy, mask) | is_constant(teacher_entropy, mask)
    return rho.masked_fill(flat, float("nan"))


def fork_overlap(student_entropy: Tensor, teacher_entropy: Tensor, mask: Tensor) -> Tensor:
    """`|F^p ∩ F^q| / floor(0.2 T)`, F the positions with the floor(0.2 T) largest entropies (Capacity eq. 5).

    Undefined for fewer than five tokens. Among equal entropies the earlier position counts as larger.
    """
    forks = [top_share(values, mask, FORK_SHARE) for values in (student_entropy, teacher_entropy)]
    shared = (forks[0] & forks[1]).sum(-1).double()
    return (shared / forks[0].sum(-1)).masked_fill(mask.sum(-1) < 1 / FORK_SHARE, float("nan"))


def position_gap(student_entropy: Tensor, teacher_entropy: Tensor, mask: Tensor) -> Tensor:
    """Mean over positions of `|H_t^q - H_t^p|`, nats (Rethinking eq. 8)."""
    return token_means((teacher_entropy - student_entropy).abs(), mask)


def mean_gap(student_entropy: Tensor, teacher_entropy: Tensor, mask: Tensor) -> Tensor:
    """`|mean_t H_t^p - mean_t H_t^q|`, nats (Capacity eq. 6)."""
    return (token_means(student_entropy, mask) - token_means(teacher_entropy, mask)).abs()


def centred(values: Tensor, mask: Tensor) -> Tensor:
    """Values [B, R] less the mean of their rollout, float64; 0 where masked."""
    return torch.where(mask.bool(), values.double() - token_means(values, mask)[:, None], 0.0)


def is_constant(values: Tensor, mask: Tensor) -> Tensor:
    """Rollouts whose unmasked values are all equal, bool [B]; also rollouts without two tokens."""
    present = mask.bool()
    highest = values.masked_fill(~present, -torch.inf).amax(-1)
    return highest <= values.masked_fill(~present, torch.inf).amin(-1)
