"""Signs of a run that goes wrong, read from the metrics of past steps.

A sign compares the mean of a metric's last WINDOW values with the mean of its first WINDOW values, or with a threshold.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

WINDOW = 5
"""Values behind each mean, so that one odd step is no sign. Steps without the metric do not count."""


@dataclass(frozen=True)
class Sign:
    """A rule on one metric, and the warning while the rule holds."""

    metric: str
    speaks: Callable[[float, float], bool]
    """Takes the mean of the first values and the mean of the last values."""
    text: str
    """The warning; `{first}` and `{last}` stand for the two means."""


SIGNS: dict[str, Sign] = {
    "length_explosion": Sign(
        "opd/response_length",
        lambda first, last: last > 1.5 * first,
        "responses grew from {first:.0f} to {last:.0f} tokens: look for repetition; set a shorter limit, or "
        "opd.tokens.truncated=mask",
    ),
    "length_collapse": Sign(
        "opd/response_length",
        lambda first, last: last < 0.5 * first,
        "responses shrank from {first:.0f} to {last:.0f} tokens, although the reverse KL may look healthy: try a "
        "smaller learning rate or opd.advantage.clamp",
    ),
    "entropy_collapse": Sign(
        "opd/student_entropy",
        lambda first, last: last < 0.3 * first,
        "student entropy fell from {first:.3f} to {last:.3f} nats: recipe=eopd keeps uncertain tokens",
    ),
    "falling_overlap": Sign(
        "opd/overlap_ratio",
        lambda first, last: last < first - 0.05,
        "the top-k overlap fell from {first:.2f} to {last:.2f}: the student leaves the teacher's likely tokens "
        "(Rethinking: it rises in runs that succeed)",
    ),
    "rising_truncation": Sign(
        "opd/truncated_share",
        lambda first, last: last > first + 0.1,
        "{last:.0%} of the rollouts are cut at the limit, {first:.0%} at first: raise data.max_response_length, or set "
        "opd.tokens.truncated=mask",
    ),
    "destructive": Sign(
        "opd/dest_corr",
        lambda first, last: last > 1.0,
        "Dest:Corr is {last:.2f}: the teacher pulls harder against correct rollouts than against incorrect ones; try "
        "opd.tokens.masks=[top_student_entropy] (Capacity tables 4 and 6)",
    ),
}


class Watch:
    """Follows a run: keeps the first and last values of every sign's metric."""

    def __init__(self, earlier: Iterable[Mapping[str, float]] = ()) -> None:
        """Begins with the metrics of the `earlier` steps, before a resume."""
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, deque[float]] = {}
        self.active: set[str] = set()
        self.spoken: set[str] = set()
        for metrics in earlier:
            self.update(metrics)

    def update(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Takes a step's metrics; returns name and warning of each sign that speaks now and was silent one step ago."""
        for metric in {sign.metric for sign in SIGNS.values()} & metrics.keys():
            self._add(metric, metrics[metric])
        speaking = {name: text for name, sign in SIGNS.items() if (text := self._said(sign)) is not None}
        new = {name: text for name, text in speaking.items() if name not in self.active}
        self.active = set(speaking)
        self.spoken |= self.active
        return new

    def metrics(self) -> dict[str, float]:
        """`opd/alerts`, the number of signs that speak, and 1.0 or 0.0 for each sign that ever spoke."""
        each = {f"opd/alert/{name}": float(name in self.active) for name in sorted(self.spoken)}
        return {"opd/alerts": float(len(self.active))} | each

    def _add(self, metric: str, value: float) -> None:
        first = self.first.setdefault(metric, [])
        if len(first) < WINDOW:
            first.append(value)
        self.last.setdefault(metric, deque(maxlen=WINDOW)).append(value)

    def _said(self, sign: Sign) -> str | None:
        last = self.last.get(sign.metric, ())
        if len(last) < WINDOW:
            return None
        means = fmean(self.first[sign.metric]), fmean(last)
        return sign.text.format(first=means[0], last=means[1]) if sign.speaks(*means) else None
