"""Values with a 95% confidence interval. Without torch, for commands that only draw."""

from dataclasses import dataclass

CONFIDENCE = 0.95
ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""Quantiles of the replicates at the two ends of an interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95% interval; NaN where undefined."""

    value: float
    low: float
    high: float


def percent(interval: Estimate) -> str:
    """An estimate of a share as text, in percent: `43.8 [40.1, 47.5]`."""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
