"""Ratios of two sums over rollouts: means, shares of pooled tokens and forces, all bootstrapped in one way.

Shapes: B rollouts, R response tokens. float64; a rollout without a part in a measurement has 0 in both sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ratio:
    """`sum_b numerator_b / sum_b denominator_b`."""

    numerator: Tensor
    """float64 [B]."""
    denominator: Tensor
    """float64 [B]."""

    @property
    def value(self) -> float:
        """The ratio; NaN where the denominator is 0: undefined."""
        below = self.denominator.sum().item()
        return self.numerator.sum().item() / below if below else float("nan")

    @property
    def rollouts(self) -> int:
        """Number of rollouts with a part in the ratio."""
        return int((self.denominator > 0).sum())

    def grouped(self, groups: Tensor) -> "Ratio":
        """A ratio of equal value over groups of rollouts: `groups` int64 [B] numbers each rollout's prompt."""
        count = int(groups.max()) + 1 if len(groups) else 0
        sums = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        parts = (self.numerator, self.denominator)
        return Ratio(*(total.index_add(0, groups, part) for total, part in zip(sums, parts, strict=True)))


def of_rollouts(values: Tensor) -> Ratio:
    """Mean over the rollouts [B] whose value is defined (not NaN)."""
    known = ~values.isnan()
    return Ratio(values.double().nan_to_num(0.0), known.double())


def of_tokens(values: Tensor, mask: Tensor) -> Ratio:
    """Mean of values [B, R] over the pooled tokens with mask 1; undefined values (NaN) are left out."""
    counted = mask.bool() & ~values.isnan()
    return Ratio(torch.where(counted, values.double(), 0.0).sum(-1), counted.double().sum(-1))


def token_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each rollout, float64 [B]; NaN for a rollout without tokens."""
    sums = of_tokens(values, mask)
    return sums.numerator / sums.denominator


def undefined(like: Tensor) -> Ratio:
    """An undefined ratio for the rollouts of `like` [B, ...]."""
    nothing = torch.zeros(len(like), dtype=torch.float64)
    return Ratio(nothing, nothing)
