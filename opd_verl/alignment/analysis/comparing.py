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
"""With fewer, no signed-rank test can reach p = 0.05: 2 / 2^5 = 0.0625."""


@dataclass(frozen=True)
class Comparison:
    """One measurement on both kinds of path."""

    correct: Estimate
    incorrect: Estimate
    difference: Estimate
    """Correct less incorrect."""
    welch: float
    """p-value of Welch's t-test over paths, as if all of them were independent; the paper's p-values are of this
    size. NaN with fewer than two paths of a kind."""
    wilcoxon: float
    """p-value of the signed-rank test over the questions that have both kinds. NaN with fewer than 6 of them."""
    questions: int
    """Questions that have both kinds."""


def compare(values: Floats, members: Flags, correct: Flags, sample: QuestionDraws) -> Comparison:
    """Both means over the members, their difference, and two tests of it; values [U], NaN where undefined."""
    kinds = members & correct, members & ~correct
    pairs = question_differences(values, *kinds, sample)
    return Comparison(
        correct=sample.mean(values, kinds[0]),
        incorrect=sample.mean(values, kinds[1]),
        difference=sample.difference(values, *kinds),
        welch=welch(*(values[kind & ~np.isnan(values)] for kind in kinds)),
        wilcoxon=signed_rank(pairs),
        questions=len(pairs),
    )


def question_differences(values: Floats, correct: Flags, incorrect: Flags, sample: QuestionDraws) -> Floats:
    """Mean of the correct less mean of the incorrect paths of each question that has both."""
    means = [(one.numerator / one.denominator).numpy() for one in (sample.ratio(values, correct),
                                                                   sample.ratio(values, incorrect))]  # fmt: skip
    found = means[0] - means[1]
    return found[~np.isnan(found)]


def welch(correct: Floats, incorrect: Floats) -> float:
    """p-value of Welch's t-test; NaN with fewer than two values on a side or none that vary."""
    if min(len(correct), len(incorrect)) < 2 or not (np.ptp(correct) or np.ptp(incorrect)):
        return math.nan
    found: Any = ttest_ind(correct, incorrect, equal_var=False)
    return float(found.pvalue)


def signed_rank(differences: Floats) -> float:
    """p-value of Wilcoxon's signed-rank test; NaN with fewer than 6 differences, 1 where all are 0."""
    if len(differences) < FEWEST_QUESTIONS:
        return math.nan
    if not differences.any():
        return 1.0
    found: Any = wilcoxon(differences)
    return float(found.pvalue)
