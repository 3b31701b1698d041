"""Means over paths with 95% bootstrap intervals over questions: the paths of a question are drawn together.

Shapes: U paths (one row per path and teacher), Q questions, S replicates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.alignment.analysis.points import Flags, Floats, Ints
from opd_verl.metrics.bootstrap import NOT_KNOWN, draws, estimate, with_interval
from opd_verl.metrics.estimate import Estimate
from opd_verl.metrics.ratio import Ratio, of_rollouts


@dataclass(frozen=True, eq=False)
class QuestionDraws:
    """The questions of the paths, and how often each question is drawn in each replicate."""

    question: Ints
    """[U], 0 .. Q - 1."""
    drawn: Tensor
    """float64 [S, Q]."""

    def ratio(self, values: Floats, members: Flags) -> Ratio:
        """Sum and number of the members' known values [U], for each question [Q]: every path counts once."""
        # NOT_KNOWN is NaN, which `of_rollouts` leaves out of both sums: other paths and undefined values drop out.
        chosen = torch.from_numpy(values).masked_fill(~torch.from_numpy(members), NOT_KNOWN)
        return of_rollouts(chosen).grouped(torch.from_numpy(self.question))

    def mean(self, values: Floats, members: Flags) -> Estimate:
        """Mean over the members with its interval; no interval if fewer than two questions have members."""
        ratio = self.ratio(values, members)
        return estimate(ratio, self.drawn) if ratio.rollouts > 1 else alone(ratio.value)

    def difference(self, values: Floats, first: Flags, second: Flags) -> Estimate:
        """Mean over `first` less mean over `second`; in each replicate both use the same drawn questions."""
        ratios = [self.ratio(values, members) for members in (first, second)]
        value = ratios[0].value - ratios[1].value
        if min(ratio.rollouts for ratio in ratios) < 2:
            return alone(value)
        above, below = (self.drawn @ ratio.numerator / (self.drawn @ ratio.denominator) for ratio in ratios)
        # A replicate that drew no question with a path of one kind gives NaN.
        differences = above - below
        return with_interval(value, differences[~differences.isnan()])


def draw_questions(question: Ints, resamples: int, seed: int) -> QuestionDraws:
    """Bootstrap draws of the questions; equal seeds give equal draws."""
    count = int(question.max()) + 1 if len(question) else 0
    drawn = draws(count, resamples, seed) if count else torch.zeros(resamples, 0, dtype=torch.float64)
    return QuestionDraws(question, drawn)


def alone(value: float) -> Estimate:
    """A value without an interval."""
    return Estimate(value, NOT_KNOWN, NOT_KNOWN)
