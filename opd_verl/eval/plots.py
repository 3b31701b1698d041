"""Two pictures with a panel per benchmark: pass@k with its intervals, and the distribution of token entropies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opd_verl.eval.rows import EvalRow
from opd_verl.metrics.thresholds import BIN_WIDTH, BINS, HIGH_ENTROPY
from opd_verl.utils.files import whole
from opd_verl.utils.plot_style import label_ends, line_with_band, series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS_IN_A_LINE = 3


def draw_pass_at_k(rows: Sequence[EvalRow], path: Path) -> None:
    """Draws pass@k over k, with the band of its 95% interval."""
    _draw(rows, path, pass_panel)


def draw_entropies(rows: Sequence[EvalRow], path: Path) -> None:
    """Draws the share of tokens per bin of entropy, on a logarithmic scale."""
    _draw([row for row in rows if row.entropy], path, lambda axes, rows: entropy_panel(axes, entropy_counts(rows)))


def _draw(rows: Sequence[EvalRow], path: Path, panel: "Callable[[Axes, Sequence[EvalRow]], None]") -> None:
    from matplotlib.figure import Figure

    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    across = min(len(benchmarks), PANELS_IN_A_LINE)
    down = -(-len(benchmarks) // across)
    figure = Figure(figsize=(5.0 * across, 3.8 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, benchmark in zip(grid, benchmarks, strict=False):
        axes.set_title(benchmark)
        axes.grid(alpha=0.3)
        panel(axes, [row for row in rows if row.benchmark == benchmark])
    for axes in grid[len(benchmarks) :]:
        axes.set_axis_off()
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def pass_panel(axes: "Axes", rows: Sequence[EvalRow]) -> None:
    """Draws one benchmark's models, each named at the end of its line."""
    ends = []
    for index, row in enumerate(rows):
        ks, intervals = list(row.pass_at), list(row.pass_at.values())
        ends += line_with_band(axes, ks, intervals, index, row.model)
        if len(ks) == 1:  # a band needs two places
            axes.vlines(ks, intervals[0].low, intervals[0].high, color=series(index)["color"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rows[0].pass_at), labels=[str(k) for k in rows[0].pass_at])
    axes.set(xlabel="k", ylabel="pass@k", ylim=(0, None))
    label_ends(axes, ends, gap=0.07)


def entropy_counts(rows: Sequence[EvalRow]) -> dict[str, Sequence[int]]:
    """Tokens per bin of entropy of each model."""
    return {row.model: row.entropy.counts for row in rows if row.entropy}


def entropy_panel(axes: "Axes", counts: Mapping[str, Sequence[int]]) -> None:
    """Draws the share of each model's tokens per bin of entropy; the threshold of a high entropy is dotted."""
    edges = np.arange(BINS + 2) * BIN_WIDTH
    first_high = round(HIGH_ENTROPY / BIN_WIDTH)
    for index, (name, tokens) in enumerate(counts.items()):
        shares = np.array(tokens) / max(sum(tokens), 1)
        label, look = f"{short(name)}: {shares[first_high:].sum():.1%} at ≥ {HIGH_ENTROPY:g} nats", series(index)
        axes.stairs(shares, edges, label=label, color=look["color"], linestyle=look["linestyle"], linewidth=1.4)
    axes.axvline(HIGH_ENTROPY, color="tab:gray", linestyle=":", linewidth=1.0)
    axes.set(xlabel="entropy of a token, nats (last bin: no upper end)", ylabel="share of tokens", yscale="log")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.legend(frameon=False)
