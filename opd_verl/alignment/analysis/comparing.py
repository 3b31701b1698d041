"""Correct against incorrect paths (Unmasking 4.1, tables 4 and 6). Shapes: U paths, one row per path and teacher."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ttest_ind, wilcoxon

from opd_verl.alignment.analysis.intervals import QuestionDraws
from opd_verl.alignment.analysis.points import Flags, Floats
from opd_verl.metrics.estimate import Estimate

FEWEST_QUESTIONS = 6
"""With five questions the smallest p-value of a signed-rank test is 2 / 2^5 = 0.0625, above 0.05."""


@dataclass(frozen=True)
class Comparison:
    """One measurement on both kinds of path."""

    correct: Estimate
    incorrect: Estimate
    difference: Estimate
    """Correct less incorrect."""
    welch: float
    """p-value of Welch's t-test over paths, as if all paths were independent; the paper's p-values have this
    size. NaN with fewer than two paths of a kind."""
    wilcoxon: float
    """p-value of the signed-rank test over the questions that have both kinds. NaN with fewer than 6 questions."""
    questions: int
    """Questions that have both kinds."""


def compare(values: Floats, members: Flags, correct: Flags, draws: QuestionDraws) -> Comparison:
    """Both means over the members, their difference, and two tests of it; values [U], NaN where undefined."""
    kinds = members & correct, members & ~correct
    pairs = question_differences(values, *kinds, draws)
    return Comparison(
        correct=draws.mean(values, kinds[0]),
        incorrect=draws.mean(values, kinds[1]),
        difference=draws.difference(values, *kinds),
        welch=welch(*(values[kind & ~np.isnan(values)] for kind in kinds)),
        wilcoxon=signed_rank(pairs),
        questions=len(pairs),
    )


def question_differences(values: Floats, correct: Flags, incorrect: Flags, draws: QuestionDraws) -> Floats:
    """Mean of the correct less mean of the incorrect paths of each question that has both."""
    ratios = [draws.ratio(values, members) for members in (correct, incorrect)]
    # 0 / 0 for a question without such a path: NaN, which leaves the question out.
    right, wrong = ((ratio.numerator / ratio.denominator).numpy() for ratio in ratios)
    differences = right - wrong
    return differences[~np.isnan(differences)]


def welch(correct: Floats, incorrect: Floats) -> float:
    """p-value of Welch's t-test; NaN if a side has fewer than two values, or if both sides are constant."""
    if min(len(correct), len(incorrect)) < 2 or not (np.ptp(correct) or np.ptp(incorrect)):
        return math.nan
    # scipy makes its result types at run time: no type checker knows their fields.
    result: Any = ttest_ind(correct, incorrect, equal_var=False)
    return float(result.pvalue)


def signed_rank(differences: Floats) -> float:
    """p-value of Wilcoxon's signed-rank test; NaN with fewer than 6 differences, 1 where all are 0."""
    if len(differences) < FEWEST_QUESTIONS:
        return math.nan
    if not differences.any():
        return 1.0
    result: Any = wilcoxon(differences)
    return float(result.pvalue)
