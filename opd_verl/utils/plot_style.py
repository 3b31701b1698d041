"""The look of series in every picture: colours, lines and markers that colour-blind readers tell apart, and labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from opd_verl.metrics.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The Okabe-Ito palette without yellow and black, which vanish on a white or a dark page."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST = 24
"""The most characters of a name in a picture."""


@dataclass(frozen=True)
class End:
    """The last point of a series, and its label."""

    text: str
    x: float
    y: float
    colour: str


class Look(TypedDict):
    """Arguments of `Axes.plot`."""

    color: str
    linestyle: str
    marker: str


def series(index: int) -> Look:
    """The look of the series with this number; the first 84 all differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def line_with_band(
    axes: "Axes", places: Sequence[float], values: Sequence[Estimate], index: int, name: str
) -> list[End]:
    """Draws a series with its 95% interval; returns its last finite point, or nothing where there is none."""
    look = series(index)
    axes.plot(places, [estimate.value for estimate in values], markersize=4, label=name, **look)
    low, high = [estimate.low for estimate in values], [estimate.high for estimate in values]
    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
    points = zip(places, (estimate.value for estimate in values), strict=True)
    known = [(place, value) for place, value in points if math.isfinite(value)]
    return [End(name, *known[-1], look["color"])] if known else []


def short(name: str) -> str:
    """A name with its middle left out where it is too long for a picture."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved little and kept in order, so that they lie in 0 .. 1 at least `gap` apart.

    The gap shrinks where the places do not fit otherwise.
    """
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for below, index in zip([None, *order], order, strict=False):
        moved[index] = max(moved[index], 0.0 if below is None else moved[below] + gap)
    for above, index in zip([None, *order[::-1]], order[::-1], strict=False):
        moved[index] = min(moved[index], 1.0 if above is None else moved[above] - gap)
    return moved


def label_ends(axes: "Axes", ends: Sequence[End], gap: float = 0.1) -> None:
    """Writes the names beside the last points of the series, without overlap, and freezes the axes' limits."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    pixels = [axes.transData.transform((end.x, end.y)) for end in ends]
    heights = [float(axes.transAxes.inverted().transform(point)[1]) for point in pixels]
    for end, height in zip(ends, spread(heights, gap), strict=True):
        axes.annotate(
            short(end.text),
            (end.x, height),
            xycoords=axes.get_xaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=end.colour,
            fontweight="bold",
        )
