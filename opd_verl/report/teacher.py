"""Two charts of all probes' pairs: the teacher continuing the student's rollouts, and its top-k's mass and bytes."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from opd_verl.report.chart import Chart, Theme
from opd_verl.report.probe import ProbedPair
from opd_verl.report.runs import ReportedRun, every_pair
from opd_verl.utils.plot_style import End, label_ends, line_with_band, series

INTRO = (
    "Left: the teacher takes over after a share of the student's rollout. A line that falls below the student's own "
    "accuracy (dotted): the teacher cannot continue the student's texts, and its r_t there says little. Right: the "
    "probability outside the teacher's k most likely ids, and their bytes on the wire."
)


def charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """The charts for which a probe has the data."""
    pairs = [pair for _, pair in every_pair(runs)]
    continued, topk = [pair for pair in pairs if pair.continuation], [pair for pair in pairs if pair.masses]
    drawn = []
    if continued:
        draw, text = partial(draw_continuation, continued), continuation_text(continued)
        drawn.append(Chart("continuation", "Teacher in the student's place", text, draw, "", 3.9, 2.4))
    if topk:
        draw = partial(draw_masses, topk)
        drawn.append(Chart("masses", "Mass and bytes of a top-k", mass_text(topk), draw, "", 3.9, 2.4))
    return drawn


def continuation_text(pairs: Sequence[ProbedPair]) -> str:
    """The last point of each line, in words."""
    ends = [(pair.name, pair.continuation[-1]) for pair in pairs]
    lines = [f"{name}: {end.teacher.value:.0%} after {end.share:.0%}" for name, end in ends]
    return f"Accuracy, with 95% intervals. {'; '.join(lines)}."


def mass_text(pairs: Sequence[ProbedPair]) -> str:
    """Mass and bytes at k = 16, or at the largest k below it, in words."""
    chosen = [
        (pair.name, max((mass for mass in pair.masses if mass.k <= 16), key=lambda mass: mass.k)) for pair in pairs
    ]
    texts = [f"{name}: k = {mass.k} keeps {mass.mass:.2%} for {mass.bytes} bytes" for name, mass in chosen]
    return "; ".join(texts) + "."


def draw_continuation(pairs: Sequence[ProbedPair], figure: Figure, theme: Theme) -> None:
    """Draws the teacher's accuracy over the share of the rollout; share 0: the teacher's accuracy alone."""
    axes, ends = figure.subplots(), []
    for index, pair in enumerate(pairs):
        start, known = pair.measurements.get("teacher_accuracy"), pair.continuation
        shares = [*([0.0] if start else []), *(point.share for point in known)]
        values = [*([start] if start else []), *(point.teacher for point in known)]
        ends += line_with_band(axes, shares, values, index, pair.name)
        if student := pair.measurements.get("accuracy"):
            axes.axhline(student.value, color=series(index)["color"], linestyle=":", linewidth=1.2)
    axes.set(xlabel="share of the student's rollout", ylabel="accuracy", ylim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    label_ends(axes, ends)


def draw_masses(pairs: Sequence[ProbedPair], figure: Figure, theme: Theme) -> None:
    """Draws the probability outside the top-k over k, both logarithmic, and the bytes above."""
    axes, ends = figure.subplots(), []
    for index, pair in enumerate(pairs):
        # A top-k that holds everything would be at 0, which a logarithmic axis does not have.
        look, left = series(index), [max(1 - mass.mass, 1e-9) for mass in pair.masses]
        axes.plot([mass.k for mass in pair.masses], left, markersize=4, label=pair.name, **look)
        ends.append(End(pair.name, pair.masses[-1].k, left[-1], look["color"]))
    ks = [mass.k for mass in pairs[0].masses]
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="probability left out")
    axes.set_xticks(ks, labels=[str(k) for k in ks])
    axes.minorticks_off()
    above = axes.secondary_xaxis("top")
    shown = pairs[0].masses[::2]
    above.set_xticks([mass.k for mass in shown], labels=[f"{mass.bytes} B" for mass in shown])
    above.minorticks_off()
    label_ends(axes, ends)
