"""How well the teacher's reward tells correct rollouts from incorrect ones (Rethinking: "globally informative")."""

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """P(a positive's score is above a negative's) + P(equal) / 2, over all pairs; 0.5 tells nothing.

    Args:
        scores: [B], such as the summed r_t of each rollout.
        positive: bool [B], such as whether the rollout is correct.

    NaN where all rollouts are of one kind.
    """
    return weighted_auroc(scores, positive, torch.ones(1, len(scores), dtype=torch.float64)).item()


def weighted_auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """`auroc` with each rollout counted `weights` times [S, B], float64 [S]: the replicates of a bootstrap."""
    positives, negatives = scores[positive.bool()].double(), scores[~positive.bool()].double()
    wins = torch.sign(positives[:, None] - negatives[None]) / 2 + 0.5  # 1, 0.5 or 0 for each pair
    of_positives, of_negatives = weights[:, positive.bool()], weights[:, ~positive.bool()]
    return ((of_positives @ wins) * of_negatives).sum(-1) / (of_positives.sum(-1) * of_negatives.sum(-1))
