"""A run as the report sees it: its metrics over steps, with gaps where a value is missing."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from opd_verl.eval.rows import Row
from opd_verl.report.probe import ProbedPair
from opd_verl.tracking.samples.record import Sample

Points = list[tuple[int, float]]
"""(step, value), in order; NaN between two points that no line joins."""
FAR = 1.5
"""Times the usual distance of two points; where a distance is larger, a value is missing."""
DEPTH = re.compile(r"opd/depth/(\d+)-(\d+)/reward")
ALERT = "opd/alert/"


@dataclass(frozen=True)
class Evaluation:
    """What `opd_verl.eval` found."""

    rows: list[Row]
    n: int
    ks: list[int]


@dataclass(frozen=True)
class ShownRollout:
    """A rollout to show and the training step it is from, None for the probe's."""

    step: int | None
    sample: Sample


@dataclass(frozen=True)
class ReportedRun:
    """One folder's content; what it has not is empty."""

    letter: str
    """Names the run in charts."""
    name: str
    recipe: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    shown: list[ShownRollout] = field(default_factory=list)
    pairs: list[ProbedPair] = field(default_factory=list)
    evaluation: Evaluation | None = None
    folder: Path = Path()

    @property
    def index(self) -> int:
        """From 0, in the order of the runs."""
        return ord(self.letter) - ord("A")

    @property
    def title(self) -> str:
        """Letter and name."""
        return f"{self.letter} {self.name}"


def points(run: ReportedRun, metric: str) -> Points:
    """What is known of a metric; no NaN."""
    found = ((step["step"], step.get(metric)) for step in run.steps)
    return [(at, float(value)) for at, value in found if isinstance(value, (int, float)) and math.isfinite(value)]


def with_gaps(known: Points) -> Points:
    """NaN where a value is missing: a metric that comes every n-th step has none at the others, and is no gap."""
    distances = [after - before for (before, _), (after, _) in pairwise(known)]
    usual = median_low(distances) if distances else 0.0
    found: Points = []
    for number, value in known:
        if found and number - found[-1][0] > FAR * usual:
            found.append((found[-1][0], math.nan))
        found.append((number, value))
    return found


def last(run: ReportedRun, metric: str) -> tuple[int, float] | None:
    """Step and value of a metric's last known value."""
    known = points(run, metric)
    return known[-1] if known else None


def metrics_of(runs: Sequence[ReportedRun]) -> list[str]:
    """All names that a run logged, each once, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for step in run.steps for name in step if name != "step"))


def depth_metrics(run: ReportedRun) -> dict[tuple[int, int], str]:
    """(first, last) position of each depth bucket with its metric's name, the shallowest first."""
    found = {(int(match[1]), int(match[2])): match[0] for match in map(DEPTH.fullmatch, metrics_of([run])) if match}
    return dict(sorted(found.items()))


def alerts(run: ReportedRun) -> Iterator[tuple[str, list[int]]]:
    """Name of each alert that was ever active and the steps at which it was."""
    for metric in metrics_of([run]):
        active = [number for number, value in points(run, metric) if value > 0]
        if metric.startswith(ALERT) and active:
            yield metric.removeprefix(ALERT), active


def every_pair(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, ProbedPair]]:
    """All pairs of all probes."""
    return [(run, pair) for run in runs for pair in run.pairs]
