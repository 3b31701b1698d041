"""Measurements of one path with one teacher: means over its decision points, and rank correlations within it.

Shapes: N tokens, U paths (a path counts once for each teacher). A path with nothing to measure has NaN.
"""

import numpy as np
from scipy.stats import rankdata

from opd_verl.alignment.analysis.measures import (
    ADVANTAGE,
    COSINE,
    FEATURES,
    POINTS,
    POSITIVE,
    QUANTILES,
    SIGNAL,
    THRESHOLDS,
    WEIGHTED,
    beats,
    filtered,
    retained,
    selective,
    spearman,
)
from opd_verl.alignment.analysis.points import Flags, Floats, TokenTable

FEWEST = 5
"""Fewest decision points of a path for a rank correlation."""


def measure_paths(tokens: TokenTable) -> dict[str, Floats]:
    """Every measurement of `MEANINGS` for every path [U]."""
    point, cosine, signal = tokens.point, tokens.cosine, tokens.success_range * tokens.cosine
    stakes = tokens.total(tokens.success_range, point)
    weighted = tokens.total(signal, point)
    return {
        COSINE: tokens.mean(cosine, point),
        WEIGHTED: np.divide(weighted, stakes, out=np.full(len(stakes), np.nan), where=stakes > 0),
        POSITIVE: tokens.mean((cosine > 0).astype(float), point),
        ADVANTAGE: tokens.mean(tokens.advantage, point),
        POINTS: tokens.total(np.ones(len(cosine)), point),
        SIGNAL: tokens.mean(signal, point),
        **correlations(tokens),
        **{name: values for threshold in THRESHOLDS for name, values in oracle(tokens, threshold).items()},
        **{filtered(least): tokens.mean(signal, point & above_quantile(tokens, least)) for least in QUANTILES},
    }


def oracle(tokens: TokenTable, threshold: float) -> dict[str, Floats]:
    """Selective distillation (Unmasking E.3): keeps the decision points with a cosine above the threshold.

    Measures the mean signal (success range times cosine) over the kept points, their share, and whether that mean is
    above the mean over all points. A path that keeps no point has no mean and counts as not above.
    """
    signal, kept = tokens.success_range * tokens.cosine, tokens.cosine > threshold
    # NaN > threshold is False, so only decision points are kept.
    selected, full = tokens.mean(signal, kept), tokens.mean(signal, tokens.point)
    return {
        selective(threshold): selected,
        retained(threshold): tokens.mean(kept.astype(float), tokens.point),
        beats(threshold): np.where(np.isnan(full), np.nan, selected > full),
    }


def correlations(tokens: TokenTable) -> dict[str, Floats]:
    """Spearman's correlation of the cosine and each feature over each path's decision points [U].

    NaN with fewer than 5 points, or if one side is constant.
    """
    table = np.full((len(FEATURES), len(tokens.paths.question)), np.nan)
    kept = np.flatnonzero(tokens.point)
    block = np.stack([tokens.cosine[kept], *(tokens.features[name][kept] for name in FEATURES)])
    units = tokens.unit[kept]
    for part in np.split(np.arange(len(kept)), np.flatnonzero(np.diff(units)) + 1):
        if len(part) >= FEWEST:
            table[:, units[part[0]]] = rank_correlation(block[:, part])
    return {spearman(name): row for name, row in zip(FEATURES, table, strict=True)}


def rank_correlation(block: Floats) -> Floats:
    """Spearman's correlation of the first row and each other row; ties have their mean rank. NaN for a constant row."""
    ranks = rankdata(block, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    size = np.sqrt((ranks[0] ** 2).sum() * (ranks[1:] ** 2).sum(axis=1))
    return np.divide(ranks[1:] @ ranks[0], size, out=np.full(len(size), np.nan), where=size > 0)


def above_quantile(tokens: TokenTable, quantile: float) -> Flags:
    """Tokens [N] whose KL is at or above the quantile within their path, as the token mask `high_divergence` counts.

    The quantile is over all tokens of the path: training does not know which of them are decision points.
    """
    kl = tokens.features["kl"]
    ends = np.flatnonzero(np.diff(tokens.unit)) + 1
    least = [np.quantile(part, quantile, method="higher") for part in np.split(kl, ends) if len(part)]
    return kl >= np.array(least)[tokens.unit] if least else np.zeros(0, dtype=bool)
