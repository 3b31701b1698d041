"""Estimates over problems, and their confidence intervals. Pure numpy, float64.

Shapes: N problems, n samples of each, R bootstrap replicates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opd_verl.metrics.estimate import ENDS, Estimate

Array = NDArray[np.float64]


def pass_at_k(correct: NDArray[np.integer], n: int, k: int) -> Array:
    """Unbiased pass@k of each problem: 1 - C(n-c, k) / C(n, k) for c correct of n samples (Chen et al. 2021).

    Computed as 1 - prod_{i=n-c+1}^{n} (1 - k/i): no factorial overflows, and one factor is 0 if k > n - c.

    Args:
        correct: [N] number of correct samples, 0..n.

    Returns:
        [N], 0 to 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k samples, there are n={n}")
    # Computed once for each different count: N problems have at most n + 1 of them.
    counts, place = np.unique(correct, return_inverse=True)
    return np.array([1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)) for c in counts], np.float64)[place]


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... below n, and n."""
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n]


def stratified_replicates(strata: Sequence[Array], count: int, seed: int) -> Array:
    """Bootstrap replicates [R] of a mean of means: over each stratum's (benchmark's) problems, then over strata.

    Each replicate draws every stratum's problems anew, with replacement; a problem's n samples stay together. The same
    seed draws the same problems for every model.
    """
    means = []
    for index, values in enumerate(strata):
        # The stratum's index is part of the seed, so that two benchmarks of equal size get different draws.
        rng = np.random.default_rng([seed, index])
        draws = (values[rng.integers(len(values), size=len(values))].mean() for _ in range(count))
        means.append(np.fromiter(draws, np.float64, count))
    return np.mean(means, axis=0)


def interval(strata: Sequence[Array], count: int, seed: int) -> Estimate:
    """Mean of the strata's means, with a bootstrap interval from percentiles.

    If all problems have the same value, the interval has width 0: a bootstrap sees no other value.
    """
    low, high = np.quantile(stratified_replicates(strata, count, seed), ENDS)
    return Estimate(mean_of_means(strata), float(low), float(high))


def mean_of_means(strata: Sequence[Array]) -> float:
    """Mean of the strata's means: every benchmark has the same weight, large or small."""
    return float(np.mean([values.mean() for values in strata]))


def gap_recovery(before: float, after: float, teacher: float) -> float | None:
    """Share of the gap that was closed: (after - before) / (teacher - before) (Rethinking). None without a gap."""
    return (after - before) / (teacher - before) if teacher > before else None
