"""A run in the report, and its metrics over steps, with gaps for missing values."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from opd_verl.eval.rows import EvalRow
from opd_verl.report.probe import ProbedPair
from opd_verl.tracking.samples.record import RolloutRecord

Points = list[tuple[int, float]]
"""(step, value) in order; a NaN separates two points that no line joins."""
FAR = 1.5
"""Factor on the usual distance of two points: points further apart have a missing value between them."""
DEPTH = re.compile(r"opd/depth/(\d+)-(\d+)/reward")
ALERT = "opd/alert/"


@dataclass(frozen=True)
class Evaluation:
    """The results of `opd_verl.eval`."""

    rows: list[EvalRow]
    n: int
    ks: list[int]


@dataclass(frozen=True)
class ShownRollout:
    """A rollout to show, and its training step; None for a probe's rollout."""

    step: int | None
    sample: RolloutRecord


@dataclass(frozen=True)
class ReportedRun:
    """The content of one folder; missing parts are empty."""

    letter: str
    """Name of the run in charts, from A."""
    name: str
    recipe: str
    """Empty if no file of Hydra names a recipe."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each training step by name, and the number of the step under `step`."""
    shown: list[ShownRollout] = field(default_factory=list)
    pairs: list[ProbedPair] = field(default_factory=list)
    evaluation: Evaluation | None = None
    folder: Path = Path()

    @property
    def index(self) -> int:
        """Number of the run, from 0."""
        return ord(self.letter) - ord("A")

    @property
    def title(self) -> str:
        """Letter and name of the run."""
        return f"{self.letter} {self.name}"


def points(run: ReportedRun, metric: str) -> Points:
    """The known values of a metric, without NaN."""
    logged = ((step["step"], step.get(metric)) for step in run.steps)
    return [(at, float(value)) for at, value in logged if isinstance(value, (int, float)) and math.isfinite(value)]


def with_gaps(known: Points) -> Points:
    """The points with a NaN in each gap. A metric that is logged every n-th step has no gaps between these steps."""
    distances = [after - before for (before, _), (after, _) in pairwise(known)]
    usual = median_low(distances) if distances else 0.0
    line: Points = []
    for number, value in known:
        if line and number - line[-1][0] > FAR * usual:
            line.append((line[-1][0], math.nan))
        line.append((number, value))
    return line


def last(run: ReportedRun, metric: str) -> tuple[int, float] | None:
    """The last known value of a metric, with its step."""
    known = points(run, metric)
    return known[-1] if known else None


def metrics_of(runs: Sequence[ReportedRun]) -> list[str]:
    """The names of all logged metrics, each once, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for step in run.steps for name in step if name != "step"))


def depth_metrics(run: ReportedRun) -> dict[tuple[int, int], str]:
    """(first, last) position of each depth bucket: its metric's name; the shallowest bucket first."""
    names = {(int(match[1]), int(match[2])): match[0] for match in map(DEPTH.fullmatch, metrics_of([run])) if match}
    return dict(sorted(names.items()))


def alerts(run: ReportedRun) -> Iterator[tuple[str, list[int]]]:
    """Name of each alert that was ever active, and the steps at which it was active."""
    for metric in metrics_of([run]):
        active = [number for number, value in points(run, metric) if value > 0]
        if metric.startswith(ALERT) and active:
            yield metric.removeprefix(ALERT), active


def every_pair(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, ProbedPair]]:
    """All pairs of all probes, each with its run."""
    return [(run, pair) for run in runs for pair in run.pairs]
