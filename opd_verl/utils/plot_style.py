"""How series look in every picture: colours, lines and markers that colour-blind readers tell apart, and names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opd_verl.metrics.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The Okabe-Ito palette, less yellow and black, which are lost on a white and on a dark page."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST = 24
"""Characters of a name in a picture."""


@dataclass(frozen=True)
class End:
    """The last point of a series, and what to write there."""

    text: str
    x: float
    y: float
    colour: str


def series(index: int) -> dict[str, Any]:
    """Arguments of `Axes.plot` for the series with this number; the first 84 all differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def line_with_band(
    axes: "Axes", places: Sequence[float], values: Sequence[Estimate], index: int, name: str
) -> list[End]:
    """A series with its 95% interval; gives its last known point, or nothing where none is known."""
    look = series(index)
    axes.plot(places, [one.value for one in values], markersize=4, label=name, **look)
    low, high = [one.low for one in values], [one.high for one in values]
    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
    known = [(place, one.value) for place, one in zip(places, values, strict=True) if math.isfinite(one.value)]
    return [End(name, *known[-1], look["color"])] if known else []


def short(name: str) -> str:
    """A name with its middle left out where it is too long for a picture."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1 in the same order, at least `gap` apart (less where so many do not fit), moved little."""
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    for below, index in zip([None, *order], order, strict=False):
        found[index] = max(found[index], 0.0 if below is None else found[below] + gap)
    for above, index in zip([None, *order[::-1]], order[::-1], strict=False):
        found[index] = min(found[index], 1.0 if above is None else found[above] - gap)
    return found


def label_ends(axes: "Axes", ends: Sequence[End], gap: float = 0.1) -> None:
    """Names beside the last points of series, none over another. The axes' limits stay as they are from then on."""
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
