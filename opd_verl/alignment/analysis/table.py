"""The tables of Unmasking, in its order of columns, as Markdown."""

import math

from opd_verl.alignment.analysis.analyse import Analysis, PathGroup
from opd_verl.alignment.analysis.comparing import Comparison
from opd_verl.alignment.analysis.measures import (
    ADVANTAGE,
    COMPARED,
    COSINE,
    FEATURES,
    POINTS,
    POSITIVE,
    SIGNAL,
    THRESHOLDS,
    WEIGHTED,
    beats,
    retained,
    selective,
    spearman,
)
from opd_verl.alignment.tree.difficulty import BINS, EXTREMELY_HARD
from opd_verl.metrics.estimate import Estimate
from opd_verl.utils.markdown import markdown_table

NAMES = {COSINE: "mean cosine", WEIGHTED: "weighted cosine (SR range)", ADVANTAGE: "teacher advantage"}
KINDS = ["correct", "incorrect", "Δ", "p, Welch", "p, Wilcoxon", "questions"]
UNDEFINED = "-"


def cell(estimate: Estimate, digits: int = 3) -> str:
    """`+0.047 [+0.026, +0.068]`; only the value if there is no interval."""
    ends = "" if math.isnan(estimate.low) else f" [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    return number(estimate.value, digits) + ends


def number(value: float, digits: int = 3) -> str:
    """`+0.047`."""
    return UNDEFINED if math.isnan(value) else f"{value:+.{digits}f}"


def share(estimate: Estimate) -> str:
    """`51.6% [50.9, 52.4]`."""
    if math.isnan(estimate.value):
        return UNDEFINED
    ends = "" if math.isnan(estimate.low) else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}%{ends}"


def probability(p: float) -> str:
    """A p-value."""
    return UNDEFINED if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def ranking(analysis: Analysis) -> str:
    """Table 1."""
    rows = [
        [group.name, cell(group.means[COSINE]), str(group.paths), str(group.points), f"{group.means[POINTS].value:.1f}"]
        for group in analysis.teachers
    ]
    heads = ["teacher", "mean cosine", "paths", "decision points", "decision points of a path"]
    return markdown_table(heads, rows)


def alternatives(analysis: Analysis) -> str:
    """Table 3, with the teacher advantage."""
    rows = [
        [group.name, share(group.means[POSITIVE]), cell(group.means[WEIGHTED]), cell(group.means[ADVANTAGE])]
        for group in analysis.teachers
    ]
    return markdown_table(["teacher", "fraction positive", NAMES[WEIGHTED], NAMES[ADVANTAGE]], rows)


def compared(analysis: Analysis) -> str:
    """Table 4."""
    return markdown_table(["metric", *KINDS], [[NAMES[key], *sides(analysis.together.sides[key])] for key in COMPARED])


def compared_by_teacher(analysis: Analysis) -> str:
    """Table 6, with every metric of table 4."""
    rows = [[NAMES[key], group.name, *sides(group.sides[key])] for key in COMPARED for group in analysis.teachers]
    return markdown_table(["metric", "teacher", *KINDS], rows)


def sides(comparison: Comparison) -> list[str]:
    """The cells of a comparison, in the order of KINDS."""
    tests = [probability(comparison.welch), probability(comparison.wilcoxon), str(comparison.questions)]
    return [*map(cell, (comparison.correct, comparison.incorrect, comparison.difference)), *tests]


def correlations(analysis: Analysis) -> str:
    """Table 5: all teachers together, then each."""
    groups = [analysis.together, *analysis.teachers]
    rows = [[text, *(cell(group.means[spearman(name)]) for group in groups)] for name, text in FEATURES.items()]
    return markdown_table(["feature", *(group.name for group in groups)], rows)


def oracle(analysis: Analysis) -> str:
    """Table 2."""
    means = analysis.together.means
    rows = [[f"full {analysis.objective}", cell(means[SIGNAL], 4), "100%", UNDEFINED]]
    for least in THRESHOLDS:
        signal = cell(means[selective(least)], 4)
        rows.append([f"selective (t = {least:g})", signal, share(means[retained(least)]), share(means[beats(least)])])
    return markdown_table(["strategy", "mean signal", "decision points", "paths that beat full"], rows)


def levels(analysis: Analysis) -> str:
    """Mean cosine by difficulty."""
    groups = [analysis.together, *analysis.teachers]
    rows = [
        [level, text, str(analysis.questions[level]), *(difficulty_cell(group, level) for group in groups)]
        for level, text in BINS.items()
    ]
    return markdown_table(["difficulty", "pass rate", "questions", *(group.name for group in groups)], rows)


def difficulty_cell(group: PathGroup, level: str) -> str:
    """A group's mean cosine on the questions of one difficulty."""
    return "left out" if level == EXTREMELY_HARD else cell(group.bins[level])


def distributions(analysis: Analysis) -> str:
    """Appendix E.1."""
    rows = [
        [group.name, number(group.cosines.mean), number(group.cosines.std).lstrip("+"), str(group.points)]
        for group in (analysis.together, *analysis.teachers)
    ]
    return markdown_table(["teacher", "mean", "standard deviation", "decision points"], rows)


def caption(analysis: Analysis) -> str:
    """A sentence about means, intervals and points that are left out."""
    gone = f" {analysis.undefined} decision points have no cosine: a gradient is 0." if analysis.undefined else ""
    return (
        f"Means over paths, each counted once per teacher. In brackets: 95% intervals of {analysis.resamples} "
        f"bootstrap replicates over questions, seed {analysis.seed}; none with fewer than two questions.{gone}"
    )
