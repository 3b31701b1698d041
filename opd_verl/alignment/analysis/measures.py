"""What is measured on one path with one teacher, by name, and what each measurement is."""

COSINE, WEIGHTED, POSITIVE, ADVANTAGE = "cosine", "weighted_cosine", "positive_share", "advantage"
POINTS, SIGNAL = "points", "signal"
FEATURES = {
    "depth": "depth / length",
    "kl": "KL of student and teacher",
    "js": "JS divergence",
    "l2": "L2 distance",
    "similarity": "cosine of the two probability vectors",
}
"""Known at every token without a single rollout more (Unmasking, table 5)."""
THRESHOLDS = (0.0, 0.3)
"""Cosines above which the selective oracle keeps a decision point (Unmasking, table 2)."""
QUANTILES = (0.25, 0.5, 0.75)
"""Of the KL within a path, above which the divergence filter keeps a token."""
COMPARED = (COSINE, WEIGHTED, ADVANTAGE)
"""On correct and incorrect paths (Unmasking, table 4)."""


def spearman(feature: str) -> str:
    """Name of the rank correlation of the cosine with a feature."""
    return f"spearman/{feature}"


def selective(threshold: float) -> str:
    """Name of the oracle's mean signal."""
    return f"selective/{threshold:g}"


def retained(threshold: float) -> str:
    """Name of the share that the oracle keeps."""
    return f"retained/{threshold:g}"


def beats(threshold: float) -> str:
    """Name of the oracle's success: 1 where its signal is above the whole path's."""
    return f"beats/{threshold:g}"


def filtered(quantile: float) -> str:
    """Name of the mean signal that the divergence filter leaves."""
    return f"signal_above_kl/{quantile:g}"


MEANINGS: dict[str, str] = {
    COSINE: "Mean cosine of the distillation gradient and the ideal one (eq. 2.12) over a path's decision points.",
    WEIGHTED: "The same, each decision point weighted by its success range, the largest less the smallest P_succ of "
    "its tokens: what counts is where much is at stake.",
    POSITIVE: "Share of a path's decision points with a cosine above 0.",
    ADVANTAGE: "Mean of the teacher's less the student's expected P_succ over a path's decision points (eq. 2.1).",
    POINTS: "Decision points of a path: at least two tokens with enough visits, whose P_succ differ.",
    SIGNAL: "Mean of success range times cosine over a path's decision points.",
    **{
        spearman(name): f"Rank correlation of cosine and {text} within a path of at least 5 decision points."
        for name, text in FEATURES.items()
    },
    **{
        selective(
            one
        ): f"Mean signal over the decision points with a cosine above {one:g}; a path without one is left out."
        for one in THRESHOLDS
    },
    **{retained(one): f"Share of a path's decision points with a cosine above {one:g}." for one in THRESHOLDS},
    **{
        beats(one): f"Share of paths whose mean signal with a cosine above {one:g} is larger than over all points."
        for one in THRESHOLDS
    },
    **{
        filtered(
            one
        ): f"Mean signal over the decision points with a KL at or above the {one:g} quantile of the path's tokens."
        for one in QUANTILES
    },
}
"""Every measurement of a path; each is averaged over paths."""
