"""Policy losses in verl's registry (`actor_rollout_ref.actor.policy_loss.loss_mode`): `opd` and `opd_none`."""

from typing import TypedDict, cast

from omegaconf import DictConfig
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig

from opd_verl.objectives.clipped import clipped_surrogate


@register_policy_loss("opd")
def opd_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: DictConfig | ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate on the OPD advantage, token-mean over the global mini-batch (objectives/README.md 1).

    verl's `vanilla` loss differs by its dual clip, which drops the gradient of tokens with a negative advantage
    whose ratio exceeds `clip_ratio_c`; EOPD eq. 8 has no dual clip.

    Args:
        old_log_prob, log_prob, advantages, response_mask: [B, R]; nats.
        loss_agg_mode: verl's aggregation; `token-mean` divides by the mini-batch's tokens over all ranks.
        config: verl's actor config (clip range, global batch info).
        rollout_is_weights: optional importance weights [B, R] of verl's rollout correction.

    Returns:
        scalar loss and the metrics `pg_clipfrac` and `ppo_kl`, means over this micro-batch's tokens.
    """
    assert config is not None, "verl passes its actor config to every policy loss"
    losses, clipped, log_ratio = clipped_surrogate(
        log_prob, old_log_prob, advantages, config.clip_ratio_low, config.clip_ratio_high
    )
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(
        losses, response_mask, loss_agg_mode, **at_least_one_token(cast(BatchInfo, config.global_batch_info))
    )
    return loss, token_metrics(clipped.float(), log_ratio, response_mask)


@register_policy_loss("opd_none")
def no_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: DictConfig | ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Zero, for exact objectives: `opd_verl.training.update.actor_loss` has their loss. verl's entropy and KL apply.

    Returns the metrics of `opd_policy_loss`, with a clip share of 0.
    """
    log_ratio = (log_prob - old_log_prob).detach()
    return log_prob.new_zeros(()), token_metrics(log_ratio.new_zeros(log_ratio.shape), log_ratio, response_mask)


class BatchInfo(TypedDict, total=False):
    """verl's `global_batch_info`: the denominators of its loss aggregation."""

    dp_size: int
    batch_num_tokens: int | None
    global_batch_size: int | None
    loss_scale_factor: int | None


def at_least_one_token(global_batch_info: BatchInfo) -> BatchInfo:
    """verl's denominators, changed so that a mini-batch whose tokens are all masked has loss 0 and not 0 / 0."""
    tokens = global_batch_info.get("batch_num_tokens")
    return global_batch_info if tokens is None else {**global_batch_info, "batch_num_tokens": max(tokens, 1)}


def token_metrics(clipped: Tensor, log_ratio: Tensor, mask: Tensor) -> dict[str, float]:
    """verl's names: `pg_clipfrac` is the share of clipped tokens, `ppo_kl` the mean of log p_old - log p in nats.

    verl averages both over micro-batches of any size: unlike the loss, they depend on the split into micro-batches.
    """
    if not mask.any():
        return {"actor/pg_clipfrac": 0.0, "actor/ppo_kl": 0.0}
    return {
        "actor/pg_clipfrac": masked_mean(clipped, mask).item(),
        "actor/ppo_kl": masked_mean(-log_ratio, mask).item(),
    }
