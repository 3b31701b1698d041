"""Inputs of hooks and step metrics."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from opd_verl.config.sections import TokenConfig


@dataclass(frozen=True)
class RewardInputs:
    """One step's rollouts as a hook may read them.

    All [B, R] unless a field says otherwise; detached, nats, defined where `mask` is 1. Padded positions have mask 0.
    """

    log_p_old: Tensor
    """log p_old(y_t) of the student that sampled the rollout."""
    log_q: Tensor
    """log q(y_t) of the teacher after the same tokens."""
    mask: Tensor
    """1 on response tokens whose teacher score is valid."""
    student_entropy: Tensor
    """Full-vocabulary entropy of p_old."""
    task_score: Tensor
    """The rollout's task reward [B] from verl's reward function."""
    correct: Tensor | None = None
    """Whether the rollout's task score is above 0, bool [B]; None where the task reward does not tell."""
    truncated: Tensor | None = None
    """Whether the rollout hit the length limit without an end-of-sequence token, bool [B]."""
    teacher_entropy: Tensor | None = None
    """Full-vocabulary entropy of q; None where the teacher was not asked for it."""
    off_policy: Tensor | None = None
    """Whether the response comes from the data set, bool [B]; None where the student sampled all responses."""
    log_p_topk: Tensor | None = None
    """log p_old at the student's top-k ids [B, R, K], where `opd.objective.k` needs them."""
    log_q_topk: Tensor | None = None
    """log q at the student's top-k ids [B, R, K]."""
    tokens: "TokenConfig | None" = None
    """`opd.tokens`: the settings of token masks and weights."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Values that a hook adds as `opd/<name>`; they are logged with the step."""

    @property
    def position(self) -> Tensor:
        """Index of each token within its response [B, R], int64, from 0."""
        return torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)
