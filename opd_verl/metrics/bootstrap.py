"""Bootstrap confidence intervals of ratios, over rollouts or whole prompts. Seeded, float64.

Shapes: U units (rollouts or prompts), S replicates. A replicate draws U units with replacement.
"""

import torch
from torch import Tensor

from opd_verl.metrics.estimate import ENDS, Estimate
from opd_verl.metrics.ratio import Ratio

NOT_KNOWN = float("nan")
"""Stands for a value or an interval that is undefined."""


def draws(units: int, count: int, seed: int) -> Tensor:
    """How often each unit is drawn in each of `count` replicates: float64 [S, U], rows sum to U; fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(units, (count, units), generator=generator)
    return torch.zeros(count, units, dtype=torch.float64).scatter_add_(1, picked, torch.ones_like(picked).double())


def replicates(ratio: Ratio, drawn: Tensor) -> Tensor:
    """The ratio in every replicate in which it is defined, [S' <= S]."""
    above, below = drawn @ ratio.numerator, drawn @ ratio.denominator
    return (above / below)[below > 0]


def estimate(ratio: Ratio, drawn: Tensor) -> Estimate:
    """The ratio's value with the interval of its replicates."""
    return with_interval(ratio.value, replicates(ratio, drawn))


def with_interval(value: float, replicated: Tensor) -> Estimate:
    """A value with the quantiles of its replicates [S']; without a value or a replicate there is no interval."""
    if value != value or not len(replicated):  # NaN is the only value that differs from itself
        return Estimate(value, NOT_KNOWN, NOT_KNOWN)
    low, high = torch.quantile(replicated, torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
