"""A value and its 95% confidence interval; without torch, for commands that only draw."""

from dataclasses import dataclass

CONFIDENCE = 0.95
ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""Quantiles of the replicates that the interval lies between."""


@dataclass(frozen=True)
class Estimate:
    """NaN where undefined."""

    value: float
    low: float
    high: float
