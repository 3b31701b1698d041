"""A chart is drawn twice: as a PNG on white, and as SVG for the page, whose colours follow the page's theme."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from opd_verl.utils.files import whole
from opd_verl.utils.plot_style import COLOURS

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, FAINT, GRID = "#0a0b0c", "#0d0e0f", "#0f0e0d"
"""Placeholder colours of text, small text and lines in the SVG. `inline` replaces them by the page's variables, so each
must be a colour that is used nowhere else."""
THEMES: dict[str, dict[str, str]] = {
    "svg": {"ink": INK, "faint": FAINT, "grid": GRID},
    "png": {"ink": "#1b1f24", "faint": "#57606a", "grid": "#d8dee4"},
}
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    **{colour: f"var(--series-{index},{colour})" for index, colour in enumerate(COLOURS)},
}
DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours of text, small text and lines; series have colours of their own."""

    ink: str
    faint: str
    grid: str


@dataclass(frozen=True)
class Chart:
    """One picture of the report."""

    name: str
    """Name of its PNG, and its id in the page; unique."""
    title: str
    text: str
    """Explains what the chart shows and how to read it."""
    draw: Callable[[Figure, Theme], None]
    values: str = ""
    """The chart in words, for readers who cannot see it."""
    width: float = 3.5
    height: float = 2.2
    """Width and height in inches."""


def png(chart: Chart, path: Path) -> None:
    """Draws the chart with its title, and with a legend where series have labels."""
    figure = _drawn(chart, "png")
    figure.suptitle(chart.title, fontsize=10, fontweight="bold")
    labelled = {
        name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if labelled and not any(axes.get_legend() for axes in figure.axes):
        figure.legend(labelled.values(), labelled, loc="outside lower center", frameon=False, ncols=2, fontsize=8)
    with whole(path) as partial:
        figure.savefig(partial, dpi=DPI, format="png", facecolor="white")


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` within HTML."""
    figure, content = _drawn(chart, "svg"), io.StringIO()
    # Text stays text, not outlines; ids are the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        figure.savefig(content, format="svg", transparent=True)
    return inline(content.getvalue(), chart)


def inline(text: str, chart: Chart) -> str:
    """Makes matplotlib's SVG a part of a page: without header, with its own ids, a name, and the page's colours."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = scoped_ids(body, chart.name)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view, "matplotlib writes a viewBox"
    label = escape(". ".join(filter(None, (chart.title, chart.text, chart.values))))
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{label}"><title>{escape(chart.title)}</title>'
    return head + body[body.index(">") + 1 :].replace("xlink:href", "href").strip()


def scoped_ids(body: str, name: str) -> str:
    """Prefixes ids that something refers to with the chart's name, and removes the others.

    All charts share one page, and matplotlib gives the same ids in each.
    """
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)


def _drawn(chart: Chart, theme: str) -> Figure:
    colours = Theme(**THEMES[theme])
    with rc_context(_settings(THEMES[theme])):
        figure = Figure(figsize=(chart.width, chart.height), layout="constrained")
        chart.draw(figure, colours)
    return figure


def _settings(theme: Mapping[str, str]) -> "dict[RcKeyType, object]":
    ink, faint, grid = theme["ink"], theme["faint"], theme["grid"]
    return {
        "font.size": 8,
        "text.color": ink,
        "axes.labelcolor": faint,
        "axes.edgecolor": faint,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "xtick.color": faint,
        "ytick.color": faint,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
    }
