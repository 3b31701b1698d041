"""From r_t to the advantage of distillation (credit/README.md 4): clamp, reward-to-go, entropy shaping.

Shapes: B rollouts, R response tokens. Nothing here carries a gradient.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opd_verl.credit.inputs import RewardInputs

if TYPE_CHECKING:
    from opd_verl.config.sections import AdvantageConfig


def clamp_reward(reward: Tensor, clamp: float | None) -> Tensor:
    """r_t limited to [-clamp, clamp], nats; None: as it is."""
    return reward if clamp is None else reward.clamp(-clamp, clamp)


def discounted_suffix_sum(values: Tensor, gamma: float) -> Tensor:
    """`sum_{t' >= t} gamma^(t' - t) values_t'` along the last dimension, float64; 0^0 = 1.

    The recursion `S_t = values_t + gamma S_{t+1}` from the end: only products with gamma, no division by its powers, so
    nothing overflows or vanishes at any length.
    """
    total = values.double().movedim(-1, 0).clone(memory_format=torch.contiguous_format)  # a row per step
    for position in range(len(total) - 2, -1, -1):
        total[position] += gamma * total[position + 1]
    return total.movedim(0, -1)


def reward_to_go(reward: Tensor, mask: Tensor, gamma: float, length_normalise: bool) -> Tensor:
    """`R_t = sum_{t' >= t} gamma^(t' - t) r_t'` [B, R], nats (MiniLLM); 0 where masked.

    gamma = 0 is r_t itself, to the bit. `t' - t` counts positions; masked tokens contribute nothing to any sum.

    Args:
        reward: r_t [B, R], nats; may hold anything where masked.
        mask: 1 on response tokens [B, R].
        gamma: discount per position, in [0, 1].
        length_normalise: divides by `sum_{t' >= t} gamma^(t' - t) mask_t'`: with gamma 1, the mean of the remaining
            rewards.
    """
    present = mask.bool()
    own = torch.where(present, reward, 0.0)
    if gamma == 0:
        return own
    total = discounted_suffix_sum(own, gamma)
    if length_normalise:
        total = total / discounted_suffix_sum(present, gamma)
    return torch.where(present, total, 0.0).to(reward.dtype)


def shape_advantage(advantage: Tensor, entropy: Tensor, alpha: float, kappa: float) -> Tensor:
    """`A_t + min(alpha H_t, |A_t| / kappa)` (EOPD eq. 11); the sign of A_t stays, for kappa > 1.

    Args:
        advantage: A_t [B, R], nats.
        entropy: full-vocabulary student entropy H_t [B, R], nats; detached.
        alpha: the paper's 0.1; 0 leaves A_t as it is.
        kappa: the paper's 2.
    """
    return advantage + torch.minimum(alpha * entropy.detach(), advantage.abs() / kappa)


def shaped_advantage(reward: Tensor, inputs: RewardInputs, config: "AdvantageConfig") -> Tensor:
    """r_t clamped, summed over what follows, shaped by the student's entropy [B, R], nats, in this order.

    The default settings give r_t to the bit. 0 where masked.

    Args:
        reward: r_t [B, R], nats.
        inputs: its mask and student entropy are read.
        config: `opd.advantage`.
    """
    clamped = clamp_reward(reward, config.clamp)
    advantage = reward_to_go(clamped, inputs.mask, config.gamma, config.length_normalise)
    if config.shaping_alpha == 0:
        return advantage
    shaped = shape_advantage(advantage, inputs.student_entropy, config.shaping_alpha, config.shaping_kappa)
    return torch.where(inputs.mask.bool(), shaped, 0.0)


def mix_advantages(task: Tensor | None, opd: Tensor | None, task_weight: float, opd_weight: float) -> Tensor:
    """`A = w_task A_task + w_opd A_opd` [B, R].

    With one weight 0 its side is not read at all: `w_opd = 0` gives the task's advantage to the bit (GRPO), whatever
    the teacher said, infinities and NaN included; `w_task = 0` gives distillation's to the bit.

    Args:
        task: A_task [B, R] from verl's estimator; may be None where its weight is 0.
        opd: A_opd [B, R], nats; may be None where its weight is 0.
        task_weight: w_task.
        opd_weight: w_opd.
    """
    if opd_weight == 0:
        assert task is not None
        return task_weight * task
    if task_weight == 0:
        assert opd is not None
        return opd_weight * opd
    assert task is not None and opd is not None and task.shape == opd.shape
    return task_weight * task + opd_weight * opd
