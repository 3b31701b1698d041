"""Training metrics over steps: a small chart per metric with all runs, each named by a letter at its line's end."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opd_verl.report.chart import Chart, Theme
from opd_verl.report.runs import Points, ReportedRun, last, metrics_of, points, with_gaps
from opd_verl.utils.plot_style import End, Look, label_ends, series

MARKED = 15
"""Most points of a line that get a marker, besides points without neighbours."""


@dataclass(frozen=True)
class Curve:
    """A metric that gets a chart."""

    metric: str
    title: str
    unit: str
    reading: str
    line: float | None = None
    """Value at which a horizontal line is drawn: a target, or the border between good and bad."""
    beside: str | None = None
    """Another metric that is drawn dotted in the same chart."""


CURVES = (
    Curve("opd/reward_mean", "Mean reward r_t", "nats", "log q - log p per token. It rises towards 0.", 0.0),
    Curve("opd/reverse_kl", "Reverse KL", "nats", "Distance from the teacher on the student's tokens. Falls to 0.", 0),
    Curve(
        "opd/overlap_ratio",
        "Top-k overlap",
        "share",
        "Share of the student's top-k in the teacher's. Rises if distillation works.",
    ),
    Curve(
        "opd/overlap_advantage",
        "Advantage of the overlap",
        "nats",
        "The teacher's ranking of the tokens in both top-k. Rises towards 0.",
        0.0,
    ),
    Curve(
        "opd/student_entropy",
        "Entropy: student, teacher",
        "nats",
        "Student with markers, teacher dotted. A student far below its teacher has lost diversity.",
        beside="opd/teacher_entropy",
    ),
    Curve("opd/entropy_gap", "Entropy gap", "nats", "|teacher - student| at the same position. Falls towards 0.", 0.0),
    Curve(
        "opd/rho",
        "Entropy correlation rho",
        "Pearson's r",
        "Whether student and teacher hesitate at the same tokens. Near 1: yes.",
    ),
    Curve("opd/fork_overlap", "Fork overlap", "share", "Share of the 20% most uncertain tokens that both models have."),
    Curve(
        "opd/dest_corr",
        "Dest:Corr",
        "ratio",
        "Force on confident tokens, correct rollouts over wrong ones. Above the line at 1: regression.",
        1.0,
    ),
    Curve("opd/gated_share", "Gated share", "share", "Share of tokens at which the extra forward KL applies."),
    Curve(
        "opd/truncated_share",
        "Truncated rollouts",
        "share",
        "Share cut at the length limit. High: the reward is not final.",
    ),
    Curve("response_length/mean", "Response length", "tokens", "A sudden rise or fall comes before most collapses."),
    Curve(
        "critic/score/mean", "Task score in training", "score", "Mean score of the training rollouts. Higher is better."
    ),
    Curve("timing_s/step", "Seconds per step", "s", "The whole step; opd_verl.timeline shows its parts."),
)
INTRO = (
    "Every chart has the same runs; a letter at the end of each line names the run. A gap is a step without a value; a "
    "horizontal line without markers is the value to compare with."
)
VALIDATION = re.compile(r"val-core/(.+)/(acc|reward)/(mean@\d+)")


def curves(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A chart for each metric that a run logged."""
    logged = metrics_of(runs)
    chosen = [*(curve for curve in CURVES if curve.metric in logged), *filter(None, map(validation, logged))]
    return [chart(curve, runs) for curve in chosen if any(points(run, curve.metric) for run in runs)]


def validation(metric: str) -> Curve | None:
    """The curve of a validation score, None for another metric."""
    match = VALIDATION.fullmatch(metric)
    if not match:
        return None
    return Curve(metric, f"{match[1]}, {match[3]}", "accuracy", "Validation: mean score over the samples of a problem.")


def chart(curve: Curve, runs: Sequence[ReportedRun]) -> Chart:
    """All runs' lines of one metric."""
    name = re.sub(r"\W+", "_", curve.metric.removeprefix("opd/"))
    return Chart(name, curve.title, curve.reading, partial(draw, curve, runs), last_values(curve, runs))


def last_values(curve: Curve, runs: Sequence[ReportedRun]) -> str:
    """The last value of each line, in words."""
    ends = ((run, last(run, curve.metric)) for run in runs)
    return "; ".join(f"{run.title}: {end[1]:.4g} {curve.unit} at step {end[0]}" for run, end in ends if end)


def draw(curve: Curve, runs: Sequence[ReportedRun], figure: Figure, theme: Theme) -> None:
    """Draws all lines, with gaps where values are missing."""
    axes, ends = figure.subplots(), []
    if curve.line is not None:
        axes.axhline(curve.line, color=theme.ink, linewidth=0.9, zorder=1)
    for run in runs:
        ends += draw_line(axes, run, curve.metric, run.letter)
        ends += draw_line(axes, run, curve.beside, f"{run.letter} teacher", dotted=True) if curve.beside else []
    axes.set(xlabel="step", ylabel=curve.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(y=0.08)
    label_ends(axes, ends if len(runs) > 1 or curve.beside else [])


def draw_line(axes: Axes, run: ReportedRun, metric: str, label: str, dotted: bool = False) -> list[End]:
    """Draws a run's line and returns its end; no end if the run has no value.

    dotted: without markers and without a place in a legend.
    """
    line = with_gaps(points(run, metric))
    if not line:
        return []
    look = series(run.index)
    if dotted:
        look = Look(color=look["color"], linestyle=":", marker="")
    steps, values = zip(*line, strict=True)
    name = None if dotted else run.title
    axes.plot(steps, values, **look, label=name, markersize=3.5, markevery=marked(line), zorder=2)
    return [End(label, *line[-1], look["color"])]


def marked(line: Points) -> list[int]:
    """Places of the points that get a marker: some at equal distances, and all points without neighbours."""
    known = [math.isfinite(value) for _, value in line]
    joined = [False, *(before and after for before, after in pairwise(known)), False]
    alone = [at for at, value in enumerate(known) if value and not joined[at] and not joined[at + 1]]
    return sorted({*range(0, len(line), -(-len(line) // MARKED)), *alone})
