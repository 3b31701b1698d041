"""How well the teacher's reward tells correct rollouts from incorrect ones (Rethinking: "globally informative")."""

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2, over all pairs; 0.5 tells nothing.

    Args:
        scores: [B], such as the summed r_t of each rollout.
        positive: bool [B], such as whether the rollout is correct.

    NaN where all rollouts are of one kind.
    """
    return weighted_auroc(scores, positive, torch.ones(1, len(scores), dtype=torch.float64)).item()


def weighted_auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """The same with each rollout counted `weights` times [S, B], float64 [S]: the replicates of a bootstrap."""
    above, below = scores[positive.bool()].double(), scores[~positive.bool()].double()
    wins = torch.sign(above[:, None] - below[None]) / 2 + 0.5
    heavy, light = weights[:, positive.bool()], weights[:, ~positive.bool()]
    return ((heavy @ wins) * light).sum(-1) / (heavy.sum(-1) * light.sum(-1))
