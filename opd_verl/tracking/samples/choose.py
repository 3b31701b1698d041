"""Which rollouts of a step say something: the worst, the best, and some by lot."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chosen:
    """A rollout to show."""

    row: int
    why: str


def choose(names: Sequence[str], means: Sequence[float], count: int, seed: int) -> list[Chosen]:
    """At most `count` rollouts, the same whatever the order of the batch.

    Args:
        names: of the rollouts.
        means: mean r_t of each; NaN where no token has one, and such a rollout is not shown.
    """
    known = [row for row, mean in enumerate(means) if not math.isnan(mean)]
    rows = sorted(known, key=lambda row: (means[row], names[row]))
    ends = [Chosen(rows[0], "lowest mean r_t")] if rows else []
    ends += [Chosen(rows[-1], "highest mean r_t")] if len(rows) > 1 else []
    others = sorted(rows[1:-1], key=lambda row: names[row])
    drawn = random.Random(seed).sample(others, min(max(count - len(ends), 0), len(others)))
    return [*ends, *(Chosen(row, "by lot") for row in drawn)][:count]
