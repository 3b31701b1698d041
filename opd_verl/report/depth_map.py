"""Mean r_t by depth in the response: a heat map over a training's steps, a line for a probe."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opd_verl.report.chart import Chart, Theme
from opd_verl.report.probe import ProbedPair
from opd_verl.report.runs import ReportedRun, depth_metrics, every_pair, points
from opd_verl.utils.plot_style import label_ends, line_with_band

SCALE = LinearSegmentedColormap.from_list("orange-white-blue", ["#a04000", "#d55e00", "#f7f7f7", "#0072b2", "#004a75"])
INTRO = (
    "Mean r_t of the tokens in one stretch of the response. In a heat map each cell is a step: orange below 0, white "
    "at 0, blue above; an empty cell has no tokens, the right edge has the last step's values. Orange that stays in "
    "the deep rows: teacher and student still part there, and the teacher's judgement of long prefixes may be poor."
)


def charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A map for each run that logs depths, all on one scale, and one chart of all probes' pairs."""
    maps = [run for run in runs if any(points(run, metric) for metric in depth_metrics(run).values())]
    limit = largest(maps)
    drawn = [
        Chart(f"depth_{run.letter.lower()}", run.title, map_text(run), partial(draw_map, run, limit), "", 3.9, 2.4)
        for run in maps
    ]
    pairs = [(run, pair) for run, pair in every_pair(runs) if pair.depth]
    if pairs:
        drawn.append(Chart("depth_probe", "Probe", line_text(pairs), partial(draw_lines, pairs), "", 3.9, 2.4))
    return drawn


def map_text(run: ReportedRun) -> str:
    """The first and last known cell of the last step, in words."""
    steps, grid = grid_of(run)
    buckets, final = list(depth_metrics(run)), grid[:, -1]
    known = [at for at in range(len(buckets)) if not math.isnan(final[at])]
    ends = [
        f"{final[at]:.3f} at tokens {buckets[at][0]} to {buckets[at][1]}" for at in sorted({*known[:1], *known[-1:]})
    ]
    return f"Step {steps[-1]}: {', '.join(ends)}, nats."


def line_text(pairs: Sequence[tuple[ReportedRun, ProbedPair]]) -> str:
    """The ends of each line, in words."""
    lines = [f"{pair.name}: {pair.depth[0].reward.value:.3f} to {pair.depth[-1].reward.value:.3f}" for _, pair in pairs]
    return f"First to last stretch, nats, with 95% intervals. {'; '.join(lines)}."


def largest(runs: Sequence[ReportedRun]) -> float:
    """The largest |r_t| of all cells; 1 if there is no cell."""
    values = [abs(value) for run in runs for metric in depth_metrics(run).values() for _, value in points(run, metric)]
    return max(values, default=0.0) or 1.0


def grid_of(run: ReportedRun) -> tuple[list[int], np.ndarray]:
    """Steps with a depth metric, and r_t [buckets, steps]; NaN if a bucket has no token."""
    rows = [dict(points(run, metric)) for metric in depth_metrics(run).values()]
    steps = sorted({step for row in rows for step in row})
    return steps, np.array([[row.get(step, math.nan) for step in steps] for row in rows])


def draw_map(run: ReportedRun, limit: float, figure: Figure, theme: Theme) -> None:
    """Draws the map: steps to the right, depth downwards."""
    axes, (steps, grid) = figure.subplots(), grid_of(run)
    # Each cell reaches halfway to the next step, since steps need not be evenly spaced.
    edges = [(before + after) / 2 for before, after in pairwise(steps)]
    first, final = (edges[0] - steps[0], steps[-1] - edges[-1]) if edges else (0.5, 0.5)
    borders = [steps[0] - first, *edges, steps[-1] + final]
    mesh = axes.pcolormesh(borders, range(len(grid) + 1), grid, cmap=SCALE, vmin=-limit, vmax=limit, rasterized=True)
    buckets = [f"{low}-{high}" for low, high in depth_metrics(run)]
    axes.set_yticks([at + 0.5 for at in range(len(grid))], labels=buckets)
    axes.set(xlabel="step", ylabel="token position")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for at, value in enumerate(grid[:, -1]):
        text = "none" if math.isnan(value) else f"{value:.3f}"
        axes.annotate(
            text, (1.0, at + 0.5), (4, 0), axes.get_yaxis_transform(), "offset points", va="center", fontsize=7
        )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=25)
    bar.set_label("mean r_t, nats")
    bar.outline.set_visible(False)


def draw_lines(pairs: Sequence[tuple[ReportedRun, ProbedPair]], figure: Figure, theme: Theme) -> None:
    """Draws a line for each pair through the middles of its buckets."""
    axes, ends = figure.subplots(), []
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    for index, (_, pair) in enumerate(pairs):
        middles = [(depth.first + depth.last) / 2 for depth in pair.depth]
        ends += line_with_band(axes, middles, [depth.reward for depth in pair.depth], index, pair.name)
    axes.set(xlabel="token position", ylabel="mean r_t, nats")
    label_ends(axes, ends)
