"""Puts all parts into one page without other files: style, script and charts are within the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from tqdm import tqdm

from opd_verl.report import curves, depth_map, distributions, overview, quadrant_map, teacher, tokens
from opd_verl.report.chart import Chart, png, svg
from opd_verl.report.runs import ReportedRun
from opd_verl.report.verdict import verdict_boxes
from opd_verl.tracking.samples.html import TOKEN_STYLE, shades
from opd_verl.utils.files import write_text

PAGE = "report.html"


@dataclass(frozen=True)
class Section:
    """A part of the page. Its charts come before its body."""

    name: str
    title: str
    intro: str
    charts: Sequence[Chart] = ()
    body: str = ""

    @property
    def present(self) -> bool:
        """Whether the section has content."""
        return bool(self.charts or self.body)


def sections(runs: Sequence[ReportedRun]) -> list[Section]:
    """The sections for which a run has the data."""
    every = (
        Section(
            "overview",
            "Overview",
            "The probe's forecast, and the state of the runs: the last known value of each metric.",
            body=overview_body(runs),
        ),
        Section("curves", "Training", curves.INTRO, curves.curves(runs)),
        Section("quadrants", "Quadrants", quadrant_map.INTRO, quadrant_map.charts(runs)),
        Section("depth", "Depth", depth_map.INTRO, depth_map.charts(runs)),
        Section("teacher", "Teacher", teacher.INTRO, teacher.charts(runs)),
        Section("entropy", "Entropies", distributions.ENTROPY_INTRO, distributions.entropy_charts(runs)),
        Section(
            "evaluation",
            "pass@k",
            distributions.PASS_INTRO,
            distributions.pass_charts(runs),
            overview.evaluation_tables(runs),
        ),
        Section("tokens", "Tokens", tokens.INTRO, body=tokens.token_view(runs)),
    )
    return [section for section in every if section.present]


def overview_body(runs: Sequence[ReportedRun]) -> str:
    """Verdicts first, then alerts, runs and measurements."""
    parts = (verdict_boxes, overview.alert_box, overview.runs_table, overview.measurement_tables)
    return "\n".join(part(runs) for part in parts)


def write_report(runs: Sequence[ReportedRun], out: Path) -> list[str]:
    """Writes the page and the charts' PNGs. Returns the charts' names."""
    present = sections(runs)
    charts = [chart for section in present for chart in section.charts]
    drawn = {}
    for chart in tqdm(charts, desc="charts", disable=None):
        png(chart, out / f"{chart.name}.png")
        drawn[chart.name] = svg(chart)
    write_text(out / PAGE, page(runs, present, drawn))
    return list(drawn)


def page(runs: Sequence[ReportedRun], present: Sequence[Section], drawn: dict[str, str]) -> str:
    """The HTML of the page; drawn: the SVG of each chart."""
    title = f"Distillation report: {', '.join(run.name for run in runs)}"
    links = "".join(f'<a href="#{section.name}">{section.title}</a>' for section in present)
    body = "\n".join(section_html(section, runs, drawn) for section in present)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{part('style.css')}{TOKEN_STYLE}{shades()}</style></head>\n"
        f'<body><header><h1>Distillation report</h1><nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{body}</main>\n<script>{part('view.js')}</script></body></html>\n"
    )


def part(name: str) -> str:
    """The text of a file in this folder."""
    return files("opd_verl.report").joinpath(name).read_text()


def section_html(section: Section, runs: Sequence[ReportedRun], drawn: dict[str, str]) -> str:
    """Heading, introduction, charts side by side, then the body."""
    key = overview.key([run for run in runs if run.steps]) if section.name == "curves" else ""
    figures = "\n".join(figure_html(chart, drawn[chart.name]) for chart in section.charts)
    grid = f'<div class="charts" style="--width:{widest(section.charts)}px">{figures}</div>' if figures else ""
    return (
        f'<section id="{section.name}"><h2>{section.title}</h2><p class="intro">{section.intro}</p>{key}'
        f"{grid}{section.body}</section>"
    )


def widest(charts: Sequence[Chart]) -> int:
    """Width of a column of charts in pixels."""
    return round(92 * max(chart.width for chart in charts))


def figure_html(chart: Chart, drawn: str) -> str:
    """A chart under its title, with its explanation."""
    title = f"<b>{escape(chart.title)}</b>"
    text = f"<span>{escape(chart.text)}</span>" if chart.text else ""
    link = f'<a class="png" href="{chart.name}.png" aria-label="{escape(chart.title)} as PNG">PNG</a>'
    return f'<figure id="{chart.name}"><figcaption>{title} {link}{text}</figcaption>{drawn}</figure>'
