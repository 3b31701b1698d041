"""Names and meanings of the measurements of one path with one teacher."""

COSINE, WEIGHTED, POSITIVE, ADVANTAGE = "cosine", "weighted_cosine", "positive_share", "advantage"
POINTS, SIGNAL = "points", "signal"
FEATURES = {
    "depth": "depth / length",
    "kl": "KL of student and teacher",
    "js": "JS divergence",
    "l2": "L2 distance",
    "similarity": "cosine of the two probability vectors",
}
"""Features of a token that need two forward passes and no rollout (Unmasking, table 5)."""
THRESHOLDS = (0.0, 0.3)
"""Cosines above which the selective oracle keeps a decision point (Unmasking, table 2)."""
QUANTILES = (0.25, 0.5, 0.75)
"""Quantiles of the KL within a path: a divergence filter keeps the tokens at or above its quantile."""
COMPARED = (COSINE, WEIGHTED, ADVANTAGE)
"""Measurements that are compared on correct and incorrect paths (Unmasking, table 4)."""


def spearman(feature: str) -> str:
    """Name of the rank correlation of the cosine with a feature."""
    return f"spearman/{feature}"


def selective(threshold: float) -> str:
    """Name of the mean signal over the points that the oracle keeps."""
    return f"selective/{threshold:g}"


def retained(threshold: float) -> str:
    """Name of the share of points that the oracle keeps."""
    return f"retained/{threshold:g}"


def beats(threshold: float) -> str:
    """Name of the flag: the oracle's mean signal is above the whole path's mean signal."""
    return f"beats/{threshold:g}"


def filtered(quantile: float) -> str:
    """Name of the mean signal over the points that the divergence filter keeps."""
    return f"signal_above_kl/{quantile:g}"


MEANINGS: dict[str, str] = {
    COSINE: "Mean cosine of the distillation gradient and the ideal one (eq. 2.12) over a path's decision points.",
    WEIGHTED: "Mean cosine with each decision point weighted by its success range, the largest less the smallest "
    "P_succ of its tokens: points with much at stake count more.",
    POSITIVE: "Share of a path's decision points with a cosine above 0.",
    ADVANTAGE: "Expected P_succ under the teacher less expected P_succ under the student (eq. 2.1), mean over a path's "
    "decision points.",
    POINTS: "Decision points of a path: at least two tokens have enough visits, and their P_succ differ.",
    SIGNAL: "Mean of success range times cosine over a path's decision points.",
    **{
        spearman(name): f"Rank correlation of cosine and {text} within a path of at least 5 decision points."
        for name, text in FEATURES.items()
    },
    **{
        selective(least): f"Mean signal over the decision points with a cosine above {least:g}; a path without such a "
        "point is left out."
        for least in THRESHOLDS
    },
    **{retained(least): f"Share of a path's decision points with a cosine above {least:g}." for least in THRESHOLDS},
    **{
        beats(least): f"Share of paths whose mean signal over the points with a cosine above {least:g} is larger than "
        "over all points."
        for least in THRESHOLDS
    },
    **{
        filtered(quantile): f"Mean signal over the decision points with a KL at or above the {quantile:g} quantile of "
        "the path's tokens."
        for quantile in QUANTILES
    },
}
"""Every measurement of a path; each is averaged over paths."""
