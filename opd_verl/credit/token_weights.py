"""Weights of response tokens in distillation (credit/README.md 2): pure functions, float32 [B, R], 0 where masked."""

import torch
from torch import Tensor


def correctness_weight(correct: Tensor, mask: Tensor, correct_weight: float, incorrect_weight: float) -> Tensor:
    """`correct_weight` for tokens of correct rollouts, `incorrect_weight` for the others, float32 [B, R].

    Unmasking 4.1: "incorrect paths exhibit significantly higher gradient alignment than correct paths".

    Args:
        correct: whether the rollout is correct, bool [B].
        mask: 1 on response tokens [B, R].
        correct_weight: weight of tokens in correct rollouts.
        incorrect_weight: weight of tokens in incorrect rollouts.
    """
    per_rollout = torch.where(correct.bool(), correct_weight, incorrect_weight).float()
    return mask.bool() * per_rollout[:, None]


def depth_decay(position: Tensor, mask: Tensor, half_life: float) -> Tensor:
    """`2^(-position / half_life)`, float32 [B, R] (Rethinking: the reward's quality falls with depth).

    Args:
        position: index of each token within its response [B, R], from 0.
        mask: 1 on response tokens [B, R].
        half_life: positions over which the weight halves; above 0.
    """
    return mask.bool() * torch.exp2(-position.float() / half_life)
