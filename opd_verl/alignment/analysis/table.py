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


def cell(one: Estimate, digits: int = 3) -> str:
    """`+0.047 [+0.026, +0.068]`; the value alone where there is no interval."""
    ends = "" if math.isnan(one.low) else f" [{one.low:+.{digits}f}, {one.high:+.{digits}f}]"
    return number(one.value, digits) + ends


def number(value: float, digits: int = 3) -> str:
    """`+0.047`."""
    return UNDEFINED if math.isnan(value) else f"{value:+.{digits}f}"


def share(one: Estimate) -> str:
    """`51.6% [50.9, 52.4]`."""
    if math.isnan(one.value):
        return UNDEFINED
    ends = "" if math.isnan(one.low) else f" [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return f"{100 * one.value:.1f}%{ends}"


def probability(p: float) -> str:
    """A p-value."""
    return UNDEFINED if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def ranking(analysis: Analysis) -> str:
    """Table 1."""
    rows = [
        [one.name, cell(one.means[COSINE]), str(one.paths), str(one.points), f"{one.means[POINTS].value:.1f}"]
        for one in analysis.teachers
    ]
    heads = ["teacher", "mean cosine", "paths", "decision points", "decision points of a path"]
    return markdown_table(heads, rows)


def alternatives(analysis: Analysis) -> str:
    """Table 3, with the teacher advantage."""
    rows = [
        [one.name, share(one.means[POSITIVE]), cell(one.means[WEIGHTED]), cell(one.means[ADVANTAGE])]
        for one in analysis.teachers
    ]
    return markdown_table(["teacher", "fraction positive", NAMES[WEIGHTED], NAMES[ADVANTAGE]], rows)


def compared(analysis: Analysis) -> str:
    """Table 4."""
    return markdown_table(["metric", *KINDS], [[NAMES[key], *sides(analysis.together.sides[key])] for key in COMPARED])


def compared_by_teacher(analysis: Analysis) -> str:
    """Table 6, for every metric of table 4."""
    rows = [[NAMES[key], one.name, *sides(one.sides[key])] for key in COMPARED for one in analysis.teachers]
    return markdown_table(["metric", "teacher", *KINDS], rows)


def sides(found: Comparison) -> list[str]:
    """The cells of a comparison."""
    tests = [probability(found.welch), probability(found.wilcoxon), str(found.questions)]
    return [*(cell(one) for one in (found.correct, found.incorrect, found.difference)), *tests]


def correlations(analysis: Analysis) -> str:
    """Table 5: all teachers together, then each."""
    groups = [analysis.together, *analysis.teachers]
    rows = [[text, *(cell(one.means[spearman(name)]) for one in groups)] for name, text in FEATURES.items()]
    return markdown_table(["feature", *(one.name for one in groups)], rows)


def oracle(analysis: Analysis) -> str:
    """Table 2."""
    means = analysis.together.means
    rows = [[f"full {analysis.objective}", cell(means[SIGNAL], 4), "100%", UNDEFINED]]
    for one in THRESHOLDS:
        signal = cell(means[selective(one)], 4)
        rows.append([f"selective (t = {one:g})", signal, share(means[retained(one)]), share(means[beats(one)])])
    return markdown_table(["strategy", "mean signal", "decision points", "paths that beat full"], rows)


def levels(analysis: Analysis) -> str:
    """Mean cosine by difficulty."""
    groups = [analysis.together, *analysis.teachers]
    rows = [
        [level, text, str(analysis.questions[level]), *(difficulty_cell(one, level) for one in groups)]
        for level, text in BINS.items()
    ]
    return markdown_table(["difficulty", "pass rate", "questions", *(one.name for one in groups)], rows)


def difficulty_cell(one: PathGroup, level: str) -> str:
    """A group's mean cosine on the questions of one difficulty."""
    return "left out" if level == EXTREMELY_HARD else cell(one.bins[level])


def distributions(analysis: Analysis) -> str:
    """Appendix E.1."""
    rows = [
        [one.name, number(one.cosines.mean), number(one.cosines.std).lstrip("+"), str(one.points)]
        for one in (analysis.together, *analysis.teachers)
    ]
    return markdown_table(["teacher", "mean", "standard deviation", "decision points"], rows)


def caption(analysis: Analysis) -> str:
    """How the numbers were made."""
    gone = f" {analysis.undefined} decision points have no cosine: a gradient is 0." if analysis.undefined else ""
    return (
        f"Means over paths, each counted once per teacher. In brackets: 95% intervals of {analysis.resamples} "
        f"bootstrap replicates over questions, seed {analysis.seed}; none with fewer than two questions.{gone}"
    )
