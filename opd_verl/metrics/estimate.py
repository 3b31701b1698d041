"""Values with a 95% confidence interval. Without torch, for commands that only draw."""

import math
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

    def text(self, form: str = ".2f", scale: float = 1.0, unit: str = "") -> str:
        """`0.40 [0.31, 0.52]`, every number times `scale`; the value alone where the interval is undefined."""
        value, low, high = (format(scale * number, form) for number in (self.value, self.low, self.high))
        return f"{value}{unit}" + ("" if math.isnan(self.low) else f" [{low}, {high}]")


def percent(interval: Estimate) -> str:
    """An estimate of a share as text, in percent: `43.8 [40.1, 47.5]`."""
    return interval.text(".1f", 100)
