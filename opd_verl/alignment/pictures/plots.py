"""Three pictures: the cosines on both kinds of path, the teachers' ranking, and the cosine along single paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from opd_verl.alignment.analysis.analyse import EDGES, Analysis, Cosines
from opd_verl.alignment.analysis.measures import COSINE
from opd_verl.alignment.analysis.points import Floats, TokenTable, read_tokens
from opd_verl.utils.files import whole
from opd_verl.utils.plot_style import COLOURS, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = COLOURS[:2]
KINDS = {"correct": (BLUE, "-"), "incorrect": (ORANGE, "--")}
"""Colour and line of each kind of path."""
SMOOTHED = 15
"""Width of the running mean along a path, in decision points."""


@dataclass(frozen=True, eq=False)
class CosineTrace:
    """The cosine along one path."""

    title: str
    place: Floats
    """Positions in the response of the decision points."""
    cosine: Floats


def draw_pictures(nodes: pa.Table, analysis: Analysis, folder: Path) -> list[Path]:
    """cosines.png, teachers.png and oscillation.png; a picture without data is left out."""
    traces = best_traces(nodes, analysis)
    drawn = [
        (analysis.together.points, "cosines.png", lambda path: draw_cosines(analysis.together.cosines, path)),
        (ranked(analysis), "teachers.png", lambda path: draw_teachers(analysis, path)),
        (traces, "oscillation.png", lambda path: draw_oscillation(traces, path)),
    ]
    made = [(folder / name, draw) for there, name, draw in drawn if there]
    for path, draw in made:
        draw(path)
    return [path for path, _ in made]


def draw_cosines(cosines: Cosines, path: Path) -> None:
    """Share of the decision points of each kind of path per bin of the cosine, with the mean of each."""
    figure = _figure(5.6, 3.8)
    axes = figure.subplots()
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    for (kind, (colour, line)), counts in zip(KINDS.items(), (cosines.correct, cosines.incorrect), strict=True):
        shares = np.array(counts) / max(sum(counts), 1)
        label = f"{kind} paths: {shares[middles > 0].sum():.1%} above 0, {sum(counts)} points"
        axes.stairs(shares, EDGES, label=label, color=colour, linestyle=line, linewidth=1.6)
    axes.axvline(0, color="tab:gray", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="cosine of a decision point", ylabel="share of the decision points", xlim=(-1.02, 1.02), ylim=(0, None)
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    figure.legend(loc="outside lower center", frameon=False)
    _save(figure, path)


def ranked(analysis: Analysis) -> list[str]:
    """Names of the teachers with a mean cosine, best first."""
    return [group.name for group in analysis.teachers if group.points]


def draw_teachers(analysis: Analysis, path: Path) -> None:
    """Mean cosine of each teacher with its 95% interval: over all paths, over correct and over incorrect paths."""
    groups = [group for group in analysis.teachers if group.points]
    figure = _figure(6.4, 1.5 + 0.55 * len(groups))
    axes = figure.subplots()
    for place, group in enumerate(groups):
        sides = group.sides[COSINE]
        marks = [(group.means[COSINE], "all paths", "#1b1f24", "o", 7, 0.0)]
        marks += [
            (sides.correct, "correct paths", BLUE, "^", 5, 0.22),
            (sides.incorrect, "incorrect paths", ORANGE, "s", 5, -0.22),
        ]
        for value, label, colour, marker, size, shift in marks:
            axes.hlines(place - shift, value.low, value.high, color=colour, linewidth=size / 3.5)
            axes.plot(
                value.value, place - shift, marker, color=colour, markersize=size, label=label if not place else None
            )
    axes.axvline(0, color="tab:gray", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), labels=[short(group.name) for group in groups])
    axes.set(xlabel="mean cosine over paths, 95% interval over questions", ylim=(len(groups) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    _save(figure, path)


def best_traces(nodes: pa.Table, analysis: Analysis) -> list[CosineTrace]:
    """The best teacher's correct path and incorrect path with the most decision points."""
    names = ranked(analysis)
    tokens = read_tokens(nodes, analysis.objective)
    counts = tokens.total(np.ones(len(tokens.unit)), tokens.point)
    traces = []
    for kind in KINDS:
        side = tokens.paths.correct if kind == "correct" else ~tokens.paths.correct
        candidates = np.where(side & np.isin(tokens.paths.teacher, names[:1]), counts, 0)
        if candidates.any():
            traces.append(trace(tokens, int(candidates.argmax()), kind))
    return traces


def trace(tokens: TokenTable, unit: int, kind: str) -> CosineTrace:
    """The cosines at one path's decision points."""
    paths, here = tokens.paths, np.flatnonzero(tokens.unit == unit)
    title = f"question {paths.row[unit]}, path {paths.number[unit]} ({kind}), teacher {short(str(paths.teacher[unit]))}"
    point = tokens.point[here]
    return CosineTrace(title, tokens.depth[here][point].astype(float), tokens.cosine[here][point])


def draw_oscillation(traces: Sequence[CosineTrace], path: Path) -> None:
    """A panel for each path: up if the teacher pulls toward success, down if it pulls away (Unmasking E.2)."""
    figure = _figure(9.0, 2.5 * len(traces) + 0.4)
    panels = figure.subplots(len(traces), 1, squeeze=False).flatten()
    for axes, trace in zip(panels, traces, strict=True):
        oscillation_panel(axes, trace)
    panels[-1].set_xlabel("position in the response, tokens")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", frameon=False, ncols=3)
    _save(figure, path)


def oscillation_panel(axes: "Axes", trace: CosineTrace) -> None:
    """Draws every decision point of a path, and their running mean."""
    for up, colour, marker, label in ((True, BLUE, "^", "pull to success"), (False, ORANGE, "v", "pull away from it")):
        side = trace.cosine > 0 if up else trace.cosine < 0
        axes.vlines(trace.place[side], 0, trace.cosine[side], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(trace.place[side], trace.cosine[side], marker, color=colour, markersize=3.5, label=label)
    width = min(SMOOTHED, len(trace.cosine))
    smooth = np.convolve(trace.cosine, np.ones(width) / width, mode="valid")
    # Decision points are not evenly spaced: a mean stands at the mean of its points' positions.
    centres = np.convolve(trace.place, np.ones(width) / width, mode="valid")
    axes.plot(centres, smooth, color="#1b1f24", linewidth=1.6, label=f"mean of {width} neighbours")
    axes.axhline(0, color="tab:gray", linewidth=0.8)
    changes = int((np.diff(np.sign(trace.cosine)) != 0).sum())
    axes.set_title(
        f"{trace.title}: {len(trace.cosine)} decision points, {changes} changes of sign", fontsize=9, loc="left"
    )
    axes.set(ylabel="cosine", ylim=(-1.08, 1.08))


def _figure(width: float, height: float) -> "Figure":
    # Figure, not pyplot: no global state and no display. Imported here, since matplotlib takes a second to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
