"""Picks the rollouts of a step that are shown: the worst, the best, and some at random."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chosen:
    """A rollout that was picked."""

    row: int
    why: str
    """The reason, for the reader of the page."""


def choose(names: Sequence[str], means: Sequence[float], count: int, seed: int) -> list[Chosen]:
    """Picks at most `count` rollouts; the order of the batch does not change the choice.

    Args:
        names: the rollouts' names.
        means: mean r_t of each; a rollout whose mean is NaN is not shown.
    """
    known = [row for row, mean in enumerate(means) if not math.isnan(mean)]
    rows = sorted(known, key=lambda row: (means[row], names[row]))
    ends = [Chosen(rows[0], "lowest mean r_t")] if rows else []
    ends += [Chosen(rows[-1], "highest mean r_t")] if len(rows) > 1 else []
    others = sorted(rows[1:-1], key=lambda row: names[row])
    drawn = random.Random(seed).sample(others, min(max(count - len(ends), 0), len(others)))
    return [*ends, *(Chosen(row, "by lot") for row in drawn)][:count]
