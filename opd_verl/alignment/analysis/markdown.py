"""alignment.md: the paper's tables, each with a sentence for each of its columns."""

from collections.abc import Callable
from dataclasses import dataclass

from opd_verl.alignment.analysis.analyse import Analysis
from opd_verl.alignment.analysis.comparing import FEWEST_QUESTIONS
from opd_verl.alignment.analysis.measures import (
    ADVANTAGE,
    COMPARED,
    COSINE,
    MEANINGS,
    POINTS,
    POSITIVE,
    SIGNAL,
    WEIGHTED,
)
from opd_verl.alignment.analysis.paths import FEWEST
from opd_verl.alignment.analysis.table import (
    NAMES,
    alternatives,
    caption,
    compared,
    compared_by_teacher,
    correlations,
    distributions,
    levels,
    oracle,
    ranking,
)


@dataclass(frozen=True)
class TableSection:
    """A table, and a sentence about each of its columns."""

    title: str
    table: Callable[[Analysis], str]
    columns: tuple[str, ...]


SECTIONS = (
    TableSection(
        "Teachers, best first (Unmasking, table 1)",
        ranking,
        (
            f"mean cosine: {MEANINGS[COSINE]}",
            "paths: number of paths with at least one decision point.",
            f"decision points: {MEANINGS[POINTS]}",
            "decision points of a path: their mean number.",
        ),
    ),
    TableSection(
        "Other metrics (table 3)",
        alternatives,
        (
            f"fraction positive: {MEANINGS[POSITIVE]}",
            f"{NAMES[WEIGHTED]}: {MEANINGS[WEIGHTED]}",
            f"{NAMES[ADVANTAGE]}: {MEANINGS[ADVANTAGE]}",
        ),
    ),
    TableSection(
        "Correct against incorrect paths, all teachers (table 4)",
        compared,
        (
            *(f"{NAMES[key]}: {MEANINGS[key]}" for key in COMPARED),
            "correct, incorrect: mean over the paths of that kind.",
            "Δ: correct less incorrect.",
            "p, Welch: t-test over paths, probably the paper's test. It takes all paths as independent, although "
            "paths of one question are dependent, and so is one path under several teachers.",
            f"p, Wilcoxon: signed-rank test over the questions with both kinds of path (at least {FEWEST_QUESTIONS}).",
            "questions: number of questions with both kinds of path.",
        ),
    ),
    TableSection(
        "Correct against incorrect paths, by teacher (table 6)",
        compared_by_teacher,
        ("All columns: see table 4.",),
    ),
    TableSection(
        "Correlates of the cosine within a path (table 5)",
        correlations,
        (
            "Each column: Spearman's rank correlation of cosine and feature within a path, mean over paths with at "
            f"least {FEWEST} decision points at which both vary.",
        ),
    ),
    TableSection(
        "Selective distillation by an oracle, all teachers (table 2)",
        oracle,
        (
            f"mean signal: {MEANINGS[SIGNAL]}",
            "decision points: share of a path's decision points that are kept.",
            "paths that beat full: share of paths with a larger mean signal over the kept points than over all points.",
        ),
    ),
    TableSection(
        "By difficulty (E.9)",
        levels,
        (
            "pass rate: share of the student's initial rollouts that are correct.",
            "questions: their number in this range; questions without a correct rollout are left out of all tables.",
            f"Each further column: {MEANINGS[COSINE]}",
        ),
    ),
    TableSection(
        "Distribution of the cosine (E.1)",
        distributions,
        (
            "mean, standard deviation: over decision points, not over paths.",
            "decision points: summed over paths and teachers.",
        ),
    ),
)


def to_markdown(analysis: Analysis) -> str:
    """The whole report of one objective."""
    parts = [f"# Gradient alignment, {analysis.objective}", caption(analysis)]
    for section in SECTIONS:
        columns = "\n".join(f"* {sentence}" for sentence in section.columns)
        parts += [f"## {section.title}", section.table(analysis), columns]
    return "\n\n".join(parts) + "\n"
