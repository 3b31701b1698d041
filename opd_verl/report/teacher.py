"""The teacher in the student's place, and what a top-k of it keeps and costs: two charts of all probes' pairs."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from opd_verl.report.chart import Chart, Theme
from opd_verl.report.probe import ProbedPair
from opd_verl.report.runs import ReportedRun, every_pair
from opd_verl.utils.plot_style import End, label_ends, line_with_band, series

INTRO = (
    "Left: the teacher takes over behind a share of the student's rollout. A line that falls below the student's own "
    "accuracy (dotted): the teacher is lost where the student leads, and its r_t there says little. Right: what the "
    "teacher's k most likely ids hold, and what they cost on the wire."
)


def charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Those for which a probe has the data."""
    pairs = [pair for _, pair in every_pair(runs)]
    found, going, topk = [], [one for one in pairs if one.continuation], [one for one in pairs if one.masses]
    if going:
        draw = partial(draw_continuation, going)
        found.append(Chart("continuation", "Teacher in the student's place", text_of(going), draw, "", 3.9, 2.4))
    if topk:
        draw = partial(draw_masses, topk)
        found.append(Chart("masses", "Mass and bytes of a top-k", mass_text(topk), draw, "", 3.9, 2.4))
    return found


def text_of(pairs: Sequence[ProbedPair]) -> str:
    """The last point of each line in words."""
    ends = [(pair.name, pair.continuation[-1]) for pair in pairs]
    lines = [f"{name}: {one.teacher.value:.0%} behind {one.share:.0%}" for name, one in ends]
    return f"Accuracy, with 95% intervals. {'; '.join(lines)}."


def mass_text(pairs: Sequence[ProbedPair]) -> str:
    """k = 16 in words, or the largest k below it."""
    chosen = [(pair.name, max((one for one in pair.masses if one.k <= 16), key=lambda one: one.k)) for pair in pairs]
    return "; ".join(f"{name}: k = {one.k} keeps {one.mass:.2%} for {one.bytes} bytes" for name, one in chosen) + "."


def draw_continuation(pairs: Sequence[ProbedPair], figure: Figure, theme: Theme) -> None:
    """Teacher's accuracy over the share of the rollout, from its own beginning (0) on."""
    axes, ends = figure.subplots(), []
    for index, pair in enumerate(pairs):
        start, known = pair.measurements.get("teacher_accuracy"), pair.continuation
        shares = [*([0.0] if start else []), *(one.share for one in known)]
        values = [*([start] if start else []), *(one.teacher for one in known)]
        ends += line_with_band(axes, shares, values, index, pair.name)
        if student := pair.measurements.get("accuracy"):
            axes.axhline(student.value, color=series(index)["color"], linestyle=":", linewidth=1.2)
    axes.set(xlabel="share of the student's rollout", ylabel="accuracy", ylim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    label_ends(axes, ends)


def draw_masses(pairs: Sequence[ProbedPair], figure: Figure, theme: Theme) -> None:
    """What is left out over k, both logarithmic, and the bytes above."""
    axes, ends = figure.subplots(), []
    for index, pair in enumerate(pairs):
        look, left = series(index), [max(1 - one.mass, 1e-9) for one in pair.masses]
        axes.plot([one.k for one in pair.masses], left, markersize=4, label=pair.name, **look)
        ends.append(End(pair.name, pair.masses[-1].k, left[-1], look["color"]))
    ks = [one.k for one in pairs[0].masses]
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="probability left out")
    axes.set_xticks(ks, labels=[str(k) for k in ks])
    axes.minorticks_off()
    above = axes.secondary_xaxis("top")
    shown = pairs[0].masses[::2]
    above.set_xticks([one.k for one in shown], labels=[f"{one.bytes} B" for one in shown])
    above.minorticks_off()
    label_ends(axes, ends)
