"""From what student and teacher said to what the actor trains on: advantages, token weights, and EOPD's gate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
    """Padded fields [B, R] of the batch, and the step's metrics."""

    fields: dict[str, Tensor]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Rollouts:
    """Whose rollouts these are: keys `{uid}_{session}_{index}` and the prompts' uids [B], task rewards [B, R]."""

    keys: Sequence[str]
    uids: Sequence[str]
    task_rewards: Tensor


def credit(inputs: RewardInputs, rollouts: Rollouts, opd: OpdConfig, config: Any, seed: int) -> Credit:
    """Everything that one step's rollouts are worth.

    Args:
        inputs: what the hooks may read.
        rollouts: names and task rewards.
        opd: the `opd:` section.
        config: verl's whole config, for its advantage estimators.
        seed: of the random placement of the forward KL.

    Returns:
        `advantages`, `returns`, `token_level_rewards`, and where they are needed `opd_weights`, `forward_kl_gate`,
        `off_policy_tokens`, `response_mask` and `loss_mask`.
    """
    reward = total_reward(inputs, opd.rewards)
    weights = token_weights(inputs)
    advantage = advantages(reward, weights, inputs, rollouts, opd, config)
    fields = {"advantages": advantage, "returns": advantage, "token_level_rewards": reward}
    metrics = step_metrics(inputs, reward)
    if weights is not None:
        fields[OPD_WEIGHTS] = weights
    if opd.forward_kl.placement is not Placement.none:
        fields[GATE] = gate(inputs, opd, rollouts.keys, seed)
        metrics["opd/gated_share"] = token_mean(fields[GATE], inputs.mask)
    if inputs.off_policy is not None:
        fields[OFF_POLICY_TOKENS] = inputs.mask * inputs.off_policy[:, None]
        metrics["opd/off_policy_share"] = inputs.off_policy.float().mean().item()
    if opd.tokens.truncated is Truncation.drop:
        fields |= {"response_mask": inputs.mask, "loss_mask": inputs.mask}
    return Credit(fields, metrics)


def advantages(
    reward: Tensor,
    weights: Tensor | None,
    inputs: RewardInputs,
    rollouts: Rollouts,
    opd: OpdConfig,
    config: Any,
) -> Tensor:
    """`A = w_task A_task + w_opd A_opd` [B, R] (credit/README.md 6), A_opd already multiplied by the token weights.

    The clipped surrogate is homogeneous in A, so a weight on A is a weight on its loss. Where the objective is an
    exact divergence, A_opd takes part only if no task reward is mixed in (an objective of the user's may read it).
    """
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    raw, _ = estimator(token_level_rewards=reward, response_mask=inputs.mask, config=config.algorithm)
    distilled = shaped_advantage(raw, inputs, opd.advantage)
    distilled = distilled if weights is None else distilled * weights
    if not opd.mix.task:
        return mix_advantages(None, distilled, 0.0, opd.mix.opd)
    exact = is_exact(opd)
    task = task_advantage(inputs, rollouts, opd.mix.estimator, config)
    return mix_advantages(task, None if exact else distilled, opd.mix.task, 0.0 if exact else opd.mix.opd)


def task_advantage(inputs: RewardInputs, rollouts: Rollouts, estimator: str, config: Any) -> Tensor:
    """verl's own advantage of the task reward [B, R]; rollouts that were dropped are in no group and get 0."""
    result = torch.zeros_like(inputs.log_q)
    kept = [row for row in range(len(rollouts.keys)) if not dropped(inputs, row)]
    if not inputs.mask[kept].any():
        return result  # verl's whitening estimators refuse a batch without a token
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rollouts.task_rewards[kept], "response_mask": inputs.mask[kept]},
        non_tensors={"uid": np.array(rollouts.uids, dtype=object)[kept]},
    )
    algorithm = config.algorithm
    found = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[rollouts.keys[row] for row in kept],
        adv_estimator=estimator,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        num_repeat=config.actor_rollout_ref.rollout.n,
        norm_adv_by_std_in_grpo=algorithm.get("norm_adv_by_std_in_grpo", True),
        config=algorithm,
    ).batch["advantages"]
    result[kept] = found.to(result.dtype)
    return result


def dropped(inputs: RewardInputs, row: int) -> bool:
    """Whether `truncated: drop` removed this rollout."""
    tokens = inputs.tokens
    cut = inputs.truncated is not None and bool(inputs.truncated[row])
    return tokens is not None and tokens.truncated is Truncation.drop and cut


def gate(inputs: RewardInputs, opd: OpdConfig, keys: Sequence[str], seed: int) -> Tensor:
    """EOPD's gate [B, R]; drawn in the order of the rollouts' names, so that no layout of the batch changes it."""
    assert inputs.teacher_entropy is not None
    order = torch.tensor(sorted(range(len(keys)), key=lambda row: keys[row]))
    config = opd.forward_kl
    found = forward_kl_gate(
        config.placement, inputs.teacher_entropy[order], inputs.mask[order], config.tau, config.share, seed
    )
    return torch.empty_like(found).index_copy_(0, order, found)
