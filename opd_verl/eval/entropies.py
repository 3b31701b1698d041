"""Token entropies of a model at its own response tokens: the choice of responses, and the summary. Pure.

Entropies are over the full vocabulary at temperature 1, in nats, pooled over tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opd_verl.metrics.thresholds import BIN_WIDTH, BINS, HIGH_ENTROPY


@dataclass(frozen=True)
class EntropySummary:
    """Entropies of the pooled tokens of some responses."""

    responses: int
    tokens: int
    mean: float
    """Nats per token."""
    high_share: float
    """Share of tokens with at least `HIGH_ENTROPY` nats, 0 to 1."""
    counts: list[int]
    """[BINS + 1] tokens per bin of `BIN_WIDTH` nats, from 0; the last bin has no upper end."""


def summarise(entropies: Sequence[NDArray[np.float32]]) -> EntropySummary:
    """Pools the entropies [R] of each response. There must be at least one token."""
    pooled = np.concatenate([np.asarray(response, np.float64) for response in entropies])
    # Rounding in float32 can leave an entropy slightly below 0.
    bins = np.minimum((pooled.clip(min=0.0) / BIN_WIDTH).astype(np.int64), BINS)
    return EntropySummary(
        responses=len(entropies),
        tokens=len(pooled),
        mean=float(pooled.mean()),
        high_share=float((pooled >= HIGH_ENTROPY).mean()),
        counts=np.bincount(bins, minlength=BINS + 1).tolist(),
    )


def chosen(problems: int, n: int, count: int | None, seed: int) -> list[tuple[int, int]]:
    """(problem, sample) of the responses to read: `count` drawn without replacement, or all; in order."""
    total = problems * n
    picked = np.arange(total) if count is None or count >= total else draw(total, count, seed)
    return [divmod(int(index), n) for index in picked]


def draw(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` different numbers below `total`, sorted; the seed decides which."""
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
