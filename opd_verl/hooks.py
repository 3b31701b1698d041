"""Reward hooks: how a per-token reward r_t reaches the advantage estimator.

A hook is a pure function `RewardInputs -> Tensor[B, R]` (nats). `opd.rewards` names the hooks; their sum is r_t.

    from opd_verl.hooks import RewardInputs, register_reward

    @register_reward("clamped_reverse_kl")
    def clamped_reverse_kl(inputs: RewardInputs) -> Tensor:
        return (inputs.log_q - inputs.log_p_old).clamp(-5.0, 5.0)

`opd.plugins=[my_package.my_rewards]` imports the module that holds it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opd_verl.inputs import RewardInputs
from opd_verl.objectives.topk import expected_reward

RewardHook = Callable[[RewardInputs], Tensor]
REWARD_HOOKS: dict[str, RewardHook] = {}


def register_reward(name: str) -> Callable[[RewardHook], RewardHook]:
    """Registers a reward hook under `name`; a name taken by another function is a ValueError."""

    def register(hook: RewardHook) -> RewardHook:
        if REWARD_HOOKS.get(name, hook) is not hook:
            raise ValueError(f"reward hook {name!r} is already registered; choose another name")
        REWARD_HOOKS[name] = hook
        return hook

    return register


def total_reward(inputs: RewardInputs, names: Sequence[str]) -> Tensor:
    """Sum of the named hooks, 0 where the mask is 0 [B, R], nats.

    Raises:
        ValueError: a hook returned another shape, or a value that is not finite on an unmasked token.
    """
    total = torch.zeros_like(inputs.log_q)
    for name in names:
        reward = REWARD_HOOKS[name](inputs)
        if reward.shape != total.shape:
            raise ValueError(f"reward hook {name!r} returned {tuple(reward.shape)}, expected {tuple(total.shape)}")
        total = total + reward
    total = torch.where(inputs.mask.bool(), total, 0.0)
    if not total.isfinite().all():
        count = int((~total.isfinite()).sum())
        raise ValueError(f"the sum of the reward hooks {list(names)} is not finite on {count} tokens")
    return total


@register_reward("reverse_kl")
def reverse_kl(inputs: RewardInputs) -> Tensor:
    """`r_t = log q_t(y_t) - log p_old,t(y_t)`: minus the sampled reverse KL (Capacity eq. 7, EOPD eq. 6)."""
    return inputs.log_q - inputs.log_p_old


@register_reward("reverse_kl_baseline")
def reverse_kl_baseline(inputs: RewardInputs) -> Tensor:
    """`-E_{v ~ p_old}[log q(v) - log p_old(v)]` over the student's top-k: a control variate of `reverse_kl`."""
    if inputs.log_p_topk is None or inputs.log_q_topk is None:
        raise ValueError("reverse_kl_baseline reads the student's top-k: set opd.objective.k above 0 (16)")
    return -expected_reward(inputs.log_p_topk, inputs.log_q_topk)
