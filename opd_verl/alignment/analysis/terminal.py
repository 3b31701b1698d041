"""The teachers' ranking, and correct against incorrect paths, on a terminal of 80 columns."""

from rich import box
from rich.console import Console
from rich.table import Table

from opd_verl.alignment.analysis.analyse import Analysis
from opd_verl.alignment.analysis.intervals import alone
from opd_verl.alignment.analysis.measures import COSINE, POSITIVE, WEIGHTED
from opd_verl.alignment.analysis.table import caption, cell, number, probability, share
from opd_verl.alignment.tree.difficulty import EXTREMELY_HARD


def print_analysis(analysis: Analysis, console: Console) -> None:
    """Prints the two most important tables; alignment.md has all of them."""
    console.print(ranking(analysis))
    console.print(comparison(analysis))
    if gone := analysis.questions[EXTREMELY_HARD]:
        console.print(f"questions without a correct rollout, left out: {gone}")
    console.print(caption(analysis))


def ranking(analysis: Analysis) -> Table:
    """Teachers, best first."""
    table = titled(f"Teachers by mean cosine, {analysis.objective}")
    for heading in ("teacher", "mean cosine", "weighted", "positive", "points"):
        table.add_column(heading, justify="left" if heading == "teacher" else "right", overflow="fold")
    for group in analysis.teachers:
        weighted, positive = group.means[WEIGHTED].value, group.means[POSITIVE].value
        table.add_row(
            group.name, cell(group.means[COSINE]), number(weighted), share(alone(positive)), str(group.points)
        )
    return table


def comparison(analysis: Analysis) -> Table:
    """Mean cosine on both kinds of path."""
    table = titled("Mean cosine on correct and incorrect paths")
    for heading in ("teacher", "correct", "incorrect", "difference", "p"):
        table.add_column(heading, justify="left" if heading == "teacher" else "right", overflow="fold")
    for group in (analysis.together, *analysis.teachers):
        sides = group.sides[COSINE]
        values = (number(sides.correct.value), number(sides.incorrect.value), cell(sides.difference))
        table.add_row(group.name, *values, probability(sides.wilcoxon))
    table.caption = "p: signed-rank test over questions with both kinds of path"
    return table


def titled(title: str) -> Table:
    """An empty table in the report's style."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
