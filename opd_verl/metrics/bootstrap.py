"""Bootstrap confidence intervals of ratios, over rollouts or whole prompts. Seeded, float64.

Shapes: U units that are drawn together, S replicates.
"""

import torch
from torch import Tensor

from opd_verl.metrics.estimate import ENDS, Estimate
from opd_verl.metrics.ratio import Ratio

NOT_KNOWN = float("nan")


def draws(units: int, count: int, seed: int) -> Tensor:
    """How often each unit is drawn in each replicate: float64 [S, U], rows sum to U. The same seed, the same draws."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(units, (count, units), generator=generator)
    return torch.zeros(count, units, dtype=torch.float64).scatter_add_(1, picked, torch.ones_like(picked).double())


def replicates(ratio: Ratio, drawn: Tensor) -> Tensor:
    """The ratio in every replicate [S' <= S] in which it is defined."""
    above, below = drawn @ ratio.numerator, drawn @ ratio.denominator
    return (above / below)[below > 0]


def estimate(ratio: Ratio, drawn: Tensor) -> Estimate:
    """Value with the percentiles of its replicates."""
    return with_interval(ratio.value, replicates(ratio, drawn))


def with_interval(value: float, found: Tensor) -> Estimate:
    """A value with the percentiles of its replicates [S']; without a value or a replicate there is no interval."""
    if value != value or not len(found):
        return Estimate(value, NOT_KNOWN, NOT_KNOWN)
    low, high = torch.quantile(found, torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
