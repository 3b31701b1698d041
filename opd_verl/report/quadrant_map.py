"""The quadrants of Capacity's table 5: share of tokens and force in each, and Q3's two sides (table 4)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from opd_verl.metrics.thresholds import LOW_ENTROPY
from opd_verl.report.chart import Chart, Theme
from opd_verl.report.runs import ReportedRun, last
from opd_verl.utils.plot_style import COLOURS

BLUE, ORANGE = COLOURS[:2]
PLACES = {1: (0, 1), 2: (1, 1), 3: (0, 0), 4: (1, 0)}
"""Column and row of each quadrant: committed left, r_t > 0 above."""
NAMES = {1: "Q1 confirmed", 2: "Q2 useful distillation", 3: "Q3 forced correction", 4: "Q4 discouraged fork"}
LARGEST = 0.62
"""Side of the box of all tokens; a cell has side 1."""
INTRO = (
    "Filled box: share of the tokens; outline: share of the force (mass times mean |r_t|). An outline larger than "
    "its box: few tokens, strong push. The bar splits Q3, the pull off confident tokens: in correct rollouts "
    "(destructive, hatched) or in wrong rollouts (corrective)."
)


@dataclass(frozen=True)
class Quadrants:
    """Quadrants of one step or one probed pair. Masses are shares of all tokens, forces nats; NaN where unknown."""

    mass: dict[int, float]
    force: dict[int, float]
    destructive: float
    """Force of Q3's tokens in correct rollouts."""
    corrective: float
    """Force of Q3's tokens in incorrect rollouts."""
    dest_corr: float

    @property
    def total(self) -> float:
        """Force of all four quadrants."""
        return sum(self.force.values())


def quadrants(value: Callable[[str], float]) -> Quadrants | None:
    """Quadrants from the measurements that `value` gives by name; None if a mass or a force is missing."""
    mass = {number: value(f"q{number}_mass") for number in PLACES}
    force = {number: value(f"q{number}_force") for number in PLACES}
    if any(map(math.isnan, (*mass.values(), *force.values()))):
        return None
    sides = [value(f"{side}_mass") * value(f"{side}_reward") for side in ("destructive", "corrective")]
    return Quadrants(mass, force, *sides, dest_corr=value("dest_corr"))


def charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """First and last step of each run, and each pair of a probe."""
    titled: list[tuple[str, str, Quadrants | None]] = []
    for run in runs:
        for at in ends(run):
            step = next(metrics for metrics in run.steps if metrics["step"] == at)
            name = f"quadrants_{run.letter.lower()}_step_{at}"
            titled.append((name, f"{run.title}, step {at}", quadrants(partial(metric, step))))
        for number, pair in enumerate(run.pairs, 1):
            known = {name: estimate.value for name, estimate in pair.measurements.items()}
            title = f"{run.letter} probe: {pair.name}"
            titled.append(
                (f"quadrants_{run.letter.lower()}_probe_{number}", title, quadrants(partial(measured, known)))
            )
    return [
        Chart(name, title, "", partial(draw, parts), in_words(parts), 3.5, 3.2)
        for name, title, parts in titled
        if parts
    ]


def in_words(parts: Quadrants) -> str:
    """Masses and forces, in words."""
    texts = [f"Q{which} {parts.mass[which]:.1%} of tokens, {parts.force[which]:.3g} nats" for which in PLACES]
    return "; ".join(texts) + ("." if math.isnan(parts.dest_corr) else f"; Dest:Corr {parts.dest_corr:.2f}.")


def ends(run: ReportedRun) -> list[int]:
    """First and last step that have quadrants."""
    final = last(run, "opd/q1_mass")
    steps = [step["step"] for step in run.steps if quadrants(partial(metric, step))]
    return list(dict.fromkeys((steps[0], steps[-1]))) if final and steps else []


def metric(step: Mapping[str, float | None], name: str) -> float:
    """A metric of a step; NaN if it is missing."""
    value = step.get(f"opd/{name}")
    return math.nan if value is None else value


def measured(known: Mapping[str, float], name: str) -> float:
    """A measurement of a probe; NaN if it is missing."""
    return known.get(name, math.nan)


def draw(parts: Quadrants, figure: Figure, theme: Theme) -> None:
    """Draws four cells, and below them Q3's bar if its values are known."""
    split = not math.isnan(parts.destructive + parts.corrective) and parts.destructive + parts.corrective > 0
    panels = figure.subplots(2 if split else 1, 1, height_ratios=[5, 1] if split else [1], squeeze=False).flatten()
    draw_cells(panels[0], parts, theme)
    if split:
        draw_split(panels[1], parts, theme)


def draw_cells(axes: Axes, parts: Quadrants, theme: Theme) -> None:
    """Draws the boxes, all on one scale, and their numbers."""
    for number, (column, row) in PLACES.items():
        colour, hatch = (BLUE, None) if row else (ORANGE, "////")
        share = parts.force[number] / parts.total if parts.total else 0.0
        box(axes, column + 0.5, row + 0.6, parts.mass[number], facecolor=colour, alpha=0.8, hatch=hatch)
        box(axes, column + 0.5, row + 0.6, share, fill=False, edgecolor=theme.ink, linewidth=1.3)
        text = f"{parts.mass[number]:.1%} of tokens\n{parts.force[number]:.3g} nats, {share:.0%} of force"
        axes.text(column + 0.5, row + 0.98, NAMES[number], ha="center", va="top", fontweight="bold", fontsize=7.5)
        axes.text(column + 0.5, row + 0.03, text, ha="center", va="bottom", fontsize=7.2)
    axes.set(xlim=(0, 2), ylim=(0, 2), xticks=[0.5, 1.5], yticks=[0.5, 1.5], ylabel="sign of r_t")
    axes.set_xticks([0.5, 1.5], labels=[f"committed, H < {LOW_ENTROPY:g}", f"forking, H ≥ {LOW_ENTROPY:g} nats"])
    axes.set_yticks([0.5, 1.5], labels=["-", "+"], fontsize=11)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.axhline(1, color=theme.grid)
    axes.axvline(1, color=theme.grid)


def box(axes: Axes, x: float, y: float, share: float, **look: Any) -> None:
    """Draws a square whose area is the share."""
    side = LARGEST * math.sqrt(max(share, 0.0))
    axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, **look))


def draw_split(axes: Axes, parts: Quadrants, theme: Theme) -> None:
    """Draws the force of destructive and corrective tokens on one bar; the line marks the middle, Dest:Corr 1."""
    whole = parts.destructive + parts.corrective
    share = parts.destructive / whole
    axes.barh([0], [share], color=ORANGE, hatch="////", alpha=0.8)
    axes.barh([0], [1 - share], left=[share], color=BLUE, alpha=0.8)
    axes.axvline(0.5, color=theme.ink, linewidth=1)
    ratio = "not defined" if math.isnan(parts.dest_corr) else f"{parts.dest_corr:.2f}"
    axes.set_title(f"Q3: destructive {share:.0%} | corrective {1 - share:.0%}; Dest:Corr {ratio}", fontsize=7.5)
    axes.set(xlim=(0, 1))
    axes.set_axis_off()
