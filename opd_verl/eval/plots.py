"""The two pictures: pass@k with its intervals, and the distribution of token entropies; a panel per benchmark."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opd_verl.eval.rows import Row
from opd_verl.files import whole
from opd_verl.metrics.thresholds import BIN_WIDTH, BINS, HIGH_ENTROPY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS_IN_A_LINE = 3


def draw_pass_at_k(rows: Sequence[Row], path: Path) -> None:
    """pass@k over k, with the band of its 95% interval."""
    _draw(rows, path, _pass_panel)


def draw_entropies(rows: Sequence[Row], path: Path) -> None:
    """Share of tokens per bin of entropy, on a logarithmic scale."""
    _draw([row for row in rows if row.entropy], path, _entropy_panel)


def _draw(rows: Sequence[Row], path: Path, panel: "Callable[[Axes, Sequence[Row]], None]") -> None:
    from matplotlib.figure import Figure

    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    across = min(len(benchmarks), PANELS_IN_A_LINE)
    down = -(-len(benchmarks) // across)
    figure = Figure(figsize=(5.0 * across, 3.8 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, benchmark in zip(grid, benchmarks, strict=False):
        axes.set_title(benchmark)
        panel(axes, [row for row in rows if row.benchmark == benchmark])
        axes.grid(alpha=0.3)
    for axes in grid[len(benchmarks) :]:
        axes.set_axis_off()
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def _pass_panel(axes: "Axes", rows: Sequence[Row]) -> None:
    for row in rows:
        ks, intervals = list(row.pass_at), list(row.pass_at.values())
        (line,) = axes.plot(ks, [one.value for one in intervals], marker="o", markersize=3, label=row.model)
        low, high = [one.low for one in intervals], [one.high for one in intervals]
        if len(ks) > 1:
            axes.fill_between(ks, low, high, alpha=0.15, color=line.get_color())
        else:
            axes.vlines(ks, low, high, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rows[0].pass_at), labels=[str(k) for k in rows[0].pass_at])
    axes.set(xlabel="k", ylabel="pass@k", ylim=(0, None))
    axes.legend()


def _entropy_panel(axes: "Axes", rows: Sequence[Row]) -> None:
    edges = np.arange(BINS + 2) * BIN_WIDTH
    for row in rows:
        assert row.entropy is not None
        shares = np.array(row.entropy.counts) / row.entropy.tokens
        axes.stairs(shares, edges, label=f"{row.model}: {row.entropy.high_share:.1%} at >= {HIGH_ENTROPY:g} nats")
    axes.axvline(HIGH_ENTROPY, color="tab:gray", linestyle=":")
    axes.set(xlabel="entropy of a token, nats (last bin: and more)", ylabel="share of tokens", yscale="log")
    axes.legend()
