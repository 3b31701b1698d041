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
    """r_t limited to [-clamp, clamp], nats; None: unchanged."""
    return reward if clamp is None else reward.clamp(-clamp, clamp)


def discounted_suffix_sum(values: Tensor, gamma: float) -> Tensor:
    """`sum_{t' >= t} gamma^(t' - t) values_t'` along the last dimension, float64; 0^0 = 1.

    The loop runs `S_t = values_t + gamma S_{t+1}` from the end. A cumulative sum divided by powers of gamma would need
    no loop, but those powers vanish in long rollouts.
    """
    # Positions first: each step of the loop reads and writes one contiguous row.
    total = values.double().movedim(-1, 0).clone(memory_format=torch.contiguous_format)
    for position in range(len(total) - 2, -1, -1):
        total[position] += gamma * total[position + 1]
    return total.movedim(0, -1)


def reward_to_go(reward: Tensor, mask: Tensor, gamma: float, length_normalise: bool) -> Tensor:
    """`R_t = sum_{t' >= t} gamma^(t' - t) r_t'` [B, R], nats (MiniLLM, Unmasking eq. 2.10); 0 where masked.

    gamma = 0 gives r_t, to the bit. `t' - t` counts positions; masked tokens contribute nothing to any sum.

    Args:
        reward: r_t [B, R], nats; not read where masked.
        mask: 1 on response tokens [B, R].
        gamma: discount per position, in [0, 1].
        length_normalise: divides by `sum_{t' >= t} gamma^(t' - t) mask_t'`; with gamma = 1 this is the mean of the
            remaining rewards.
    """
    present = mask.bool()
    rewards = torch.where(present, reward, 0.0)
    if gamma == 0:
        return rewards
    total = discounted_suffix_sum(rewards, gamma)
    if length_normalise:
        total = total / discounted_suffix_sum(present, gamma)
    return torch.where(present, total, 0.0).to(reward.dtype)


def shape_advantage(advantage: Tensor, entropy: Tensor, alpha: float, kappa: float) -> Tensor:
    """`A_t + min(alpha H_t, |A_t| / kappa)` [B, R], nats (EOPD eq. 11). For kappa > 1 the sign of A_t stays.

    Args:
        advantage: A_t [B, R], nats.
        entropy: full-vocabulary student entropy H_t [B, R], nats; detached.
        alpha: 0.1 in the paper; 0 leaves A_t unchanged.
        kappa: 2 in the paper.
    """
    return advantage + torch.minimum(alpha * entropy.detach(), advantage.abs() / kappa)


def shaped_advantage(reward: Tensor, inputs: RewardInputs, config: "AdvantageConfig") -> Tensor:
    """A_t [B, R], nats, 0 where masked: r_t clamped, then summed to go, then shaped by the student's entropy.

    The default settings give r_t to the bit.

    Args:
        reward: r_t [B, R], nats.
        inputs: mask and student entropy of the rollouts.
        config: the section `opd.advantage`.
    """
    clamped = clamp_reward(reward, config.clamp)
    advantage = reward_to_go(clamped, inputs.mask, config.gamma, config.length_normalise)
    if config.shaping_alpha == 0:
        return advantage
    shaped = shape_advantage(advantage, inputs.student_entropy, config.shaping_alpha, config.shaping_kappa)
    return torch.where(inputs.mask.bool(), shaped, 0.0)


def mix_advantages(task: Tensor | None, opd: Tensor | None, task_weight: float, opd_weight: float) -> Tensor:
    """`A = w_task A_task + w_opd A_opd` [B, R] (credit/README.md 6).

    A side of weight 0 is not read at all, since 0 * NaN is NaN: `w_opd = 0` gives the task's advantage (GRPO) to the
    bit, and `w_task = 0` gives the advantage of distillation.

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
