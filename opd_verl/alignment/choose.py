"""Representative paths: correct and incorrect initial rollouts of a question, drawn by lot."""

from collections.abc import Sequence

import numpy as np


def representative(correct: Sequence[bool], right: int, wrong: int, seed: Sequence[int]) -> list[int]:
    """Rollouts of a question: `right` correct ones, then `wrong` incorrect ones, or as many as there are."""
    generator = np.random.default_rng(seed)
    kinds = ((True, right), (False, wrong))
    order = generator.permutation(len(correct)).tolist()
    return [one for kind, count in kinds for one in [row for row in order if correct[row] is kind][:count]]
