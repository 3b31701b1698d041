"""The advantage step: from the scores of student and teacher to advantages, token weights and the forward KL's gate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from opd_verl.config.opd import OpdConfig, is_exact
from opd_verl.credit.advantage import mix_advantages, shaped_advantage
from opd_verl.credit.forward_kl_gate import forward_kl_gate
from opd_verl.credit.inputs import RewardInputs
from opd_verl.hooks import token_weights, total_reward
from opd_verl.metrics.step import step_metrics, token_mean
from opd_verl.objectives.names import Placement, Truncation
from opd_verl.schema import GATE, OFF_POLICY_TOKENS, OPD_WEIGHTS


@dataclass(frozen=True)
class Credit:
    """The outcome of the advantage step: padded fields [B, R] for the batch, and metrics."""

    fields: dict[str, Tensor]
    metrics: dict[str, float]


@dataclass(frozen=True)
class TaskRewards:
    """The task's reward of each rollout, and the names by which verl's estimators group rollouts."""

    keys: Sequence[str]
    """`{uid}_{session}_{index}` of each rollout, [B]."""
    uids: Sequence[str]
    """uid of each rollout's prompt, [B]."""
    rewards: Tensor
    """Token-level task rewards [B, R]."""


def credit(inputs: RewardInputs, task: TaskRewards, opd: OpdConfig, config: DictConfig, seed: int) -> Credit:
    """Advantages, weights and gates of one step's rollouts.

    Args:
        inputs: everything that a hook may read.
        task: task rewards and the rollouts' names.
        opd: the `opd:` section.
        config: verl's whole config, for its advantage estimators.
        seed: seed of the forward KL's random placement.

    Returns:
        Fields `advantages`, `returns`, `token_level_rewards`, and where they are needed `opd_weights`,
        `forward_kl_gate`, `off_policy_tokens`, `response_mask` and `loss_mask`.
    """
    reward = total_reward(inputs, opd.rewards)
    weights, kept_shares = token_weights(inputs)
    advantage = advantages(reward, weights, inputs, task, opd, config)
    fields = {"advantages": advantage, "returns": advantage, "token_level_rewards": reward}
    metrics = step_metrics(inputs, reward) | kept_shares
    if weights is not None:
        fields[OPD_WEIGHTS] = weights
    if opd.forward_kl.placement is not Placement.none:
        fields[GATE] = gate(inputs, opd, task.keys, seed)
        metrics["opd/gated_share"] = token_mean(fields[GATE], inputs.mask)
    if inputs.off_policy is not None:
        fields[OFF_POLICY_TOKENS] = inputs.mask * inputs.off_policy[:, None]
        metrics["opd/off_policy_share"] = inputs.off_policy.float().mean().item()
    if opd.tokens.truncated is Truncation.drop:
        # verl counts the loss's denominator from `loss_mask`, and masks values by `response_mask`: both must agree.
        fields |= {"response_mask": inputs.mask, "loss_mask": inputs.mask}
    return Credit(fields, metrics)


def advantages(
    reward: Tensor,
    weights: Tensor | None,
    inputs: RewardInputs,
    task: TaskRewards,
    opd: OpdConfig,
    config: DictConfig,
) -> Tensor:
    """`A = w_task A_task + w_opd A_opd` [B, R] (credit/README.md 6), A_opd already multiplied by the token weights.

    The clipped surrogate is homogeneous in A, so a weight on A is a weight on its loss. Where the objective is an
    exact divergence, A_opd takes part only if no task reward is mixed in (a user's objective hook may read A_opd).
    """
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    raw, _ = estimator(token_level_rewards=reward, response_mask=inputs.mask, config=config.algorithm)
    distilled = shaped_advantage(raw, inputs, opd.advantage)
    distilled = distilled if weights is None else distilled * weights
    if not opd.mix.task:
        return mix_advantages(None, distilled, 0.0, opd.mix.opd)
    exact = is_exact(opd)
    from_task = task_advantage(inputs, task, opd.mix.estimator, config)
    return mix_advantages(from_task, None if exact else distilled, opd.mix.task, 0.0 if exact else opd.mix.opd)


def task_advantage(inputs: RewardInputs, task: TaskRewards, estimator: str, config: DictConfig) -> Tensor:
    """verl's own advantage of the task reward [B, R]; dropped rollouts belong to no group and get 0."""
    result = torch.zeros_like(inputs.log_q)
    kept = [row for row in range(len(task.keys)) if not is_dropped(inputs, row)]
    if not inputs.mask[kept].any():
        return result  # verl's whitening estimators refuse a batch without a token
    data = DataProto.from_dict(
        tensors={"token_level_rewards": task.rewards[kept], "response_mask": inputs.mask[kept]},
        non_tensors={"uid": np.array(task.uids, dtype=object)[kept]},
    )
    algorithm = config.algorithm
    # This verl function, not `compute_advantage`: it groups GRPO by session where an agent loop has several outputs.
    from_verl = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[task.keys[row] for row in kept],
        adv_estimator=estimator,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        num_repeat=config.actor_rollout_ref.rollout.n,
        norm_adv_by_std_in_grpo=algorithm.get("norm_adv_by_std_in_grpo", True),
        config=algorithm,
    ).batch["advantages"]
    result[kept] = from_verl.to(result.dtype)
    return result


def is_dropped(inputs: RewardInputs, row: int) -> bool:
    """Whether `truncated: drop` removed this rollout."""
    tokens = inputs.tokens
    cut = inputs.truncated is not None and bool(inputs.truncated[row])
    return tokens is not None and tokens.truncated is Truncation.drop and cut


def gate(inputs: RewardInputs, opd: OpdConfig, keys: Sequence[str], seed: int) -> Tensor:
    """EOPD's gate [B, R]: where the extra forward KL applies."""
    assert inputs.teacher_entropy is not None
    # Random gates are drawn in the order of the rollouts' names: the batch's order must not change a rollout's gates.
    order = torch.tensor(sorted(range(len(keys)), key=lambda row: keys[row]))
    config = opd.forward_kl
    by_name = forward_kl_gate(
        config.placement, inputs.teacher_entropy[order], inputs.mask[order], config.tau, config.share, seed
    )
    return torch.empty_like(by_name).index_copy_(0, order, by_name)
