"""A value and its 95% confidence interval; without torch, for commands that only draw."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """NaN where undefined."""

    value: float
    low: float
    high: float
