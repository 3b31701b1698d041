"""The actor loss: verl's `ppo_loss`, plus the exact terms, each over its own tokens of the global mini-batch."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss

from opd_verl.schema import (
    AGGREGATION_WEIGHTS,
    OPD_LOSS,
    OPD_NUM_TOKENS,
    OPD_WEIGHTS,
    TERM_NAMES,
)
from opd_verl.training.token_positions import jagged, row_lengths
from opd_verl.training.update.terms import Terms
from opd_verl.training.verl_types import Fields, as_tensordict, number, set_int

LossMetrics: TypeAlias = dict[str, Metric | float]


@dataclass(frozen=True)
class OpdLoss:
    """The argument of verl's `set_loss_fn`, sent to every actor worker. The engine forms the log-probs that `terms`
    need."""

    config: ActorConfig
    """verl's actor section."""
    policy_only: ActorConfig
    """`config` without entropy bonus and reference KL."""
    regularisers: ActorConfig
    """`config` with entropy bonus and reference KL alone, which see all response tokens."""
    terms: Terms
    own_tokens: bool
    """Whether the policy loss sees only tokens eligible for distillation; False where a task reward is mixed in."""

    @property
    def needs_log_prob_gradient(self) -> bool:
        """Whether verl's part depends on the sampled token's log-prob or on the entropy."""
        regularised = self.config.entropy_coeff or self.config.use_kl_loss
        return self.config.policy_loss.loss_mode != "opd_none" or bool(regularised)

    def __call__(
        self, model_output: dict[str, Tensor], data: Fields, dp_group: ProcessGroup | None = None
    ) -> tuple[Tensor, LossMetrics]:
        """Loss of one micro-batch (times verl's dp_size, which FSDP's gradient mean divides out) and metrics.

        Every numerator is masked; the denominator of each component is its own count of eligible tokens over the
        mini-batch and all ranks, so that micro-batches and rank count change nothing. No token at all: loss 0.
        """
        # With no token the numerators are 0: a denominator of 1 makes the loss 0, where verl would divide 0 by 0.
        set_int(data, "batch_num_tokens", max(number(data, "batch_num_tokens"), 1))
        loss, metrics = self.policy_part(model_output, data, dp_group)
        if self.terms.any or self.terms.full:
            exact, exact_metrics = self.exact_part(model_output)
            loss, metrics = loss + exact, metrics | exact_metrics
        return loss, metrics

    def policy_part(
        self, model_output: dict[str, Tensor], data: Fields, dp_group: ProcessGroup | None
    ) -> tuple[Tensor, LossMetrics]:
        """verl's policy loss on the eligible tokens, its entropy bonus and reference KL on all response tokens."""
        if not (OPD_WEIGHTS in data and self.own_tokens):
            return verl_loss(self.config, model_output, data, dp_group)
        rest, rest_metrics = verl_loss(self.regularisers, model_output, data, dp_group)
        # verl's loss has one mask and one denominator. Its policy loss gets a copy of the batch with both narrowed.
        eligible = data.copy()
        mask = eligible_tokens(data)
        eligible["response_mask"] = jagged(mask.to(data["response_mask"].dtype), row_lengths(data["response_mask"]))
        set_int(eligible, "batch_num_tokens", max(number(data, OPD_NUM_TOKENS), 1))
        # verl logs an entropy bonus wherever the output has an entropy. The call above logged it, over all tokens.
        sampled = {name: value for name, value in model_output.items() if name != "entropy"}
        policy, metrics = verl_loss(self.policy_only, sampled, eligible, dp_group)
        return policy + rest, rest_metrics | metrics

    def exact_part(self, model_output: dict[str, Tensor]) -> tuple[Tensor, LossMetrics]:
        """The exact terms: the engine's sum where it formed their gradient, else the sum over the terms' tokens."""
        weights = model_output[AGGREGATION_WEIGHTS]
        values = {name: model_output[name] for name in TERM_NAMES if name in model_output}
        metrics: LossMetrics = {
            f"opd/{name}": Metric(value=(value.detach() * weights).sum(), aggregation=AggregationType.SUM)
            for name, value in values.items()
        }
        if OPD_LOSS in model_output:
            return model_output[OPD_LOSS], metrics
        return torch.stack([(value * weights).sum() for value in values.values()]).sum(), metrics


def verl_loss(
    config: ActorConfig, model_output: dict[str, Tensor], data: Fields, dp_group: ProcessGroup | None
) -> tuple[Tensor, LossMetrics]:
    """Calls verl's `ppo_loss`."""
    return ppo_loss(config=config, model_output=model_output, data=as_tensordict(data), dp_group=dp_group)


def eligible_tokens(data: Fields) -> Tensor:
    """Response tokens that distillation trains on, flat [N]."""
    mask = data["response_mask"].values() > 0
    return mask & (data[OPD_WEIGHTS].values() > 0) if OPD_WEIGHTS in data else mask


def aggregation_weights(data: Fields, config: ActorConfig) -> Tensor:
    """w_t [N] such that `sum_t w_t l_t` is the micro-batch's share of the mini-batch's mean (times dp_size).

    The weights hold `loss_agg_mode`, the denominator over all ranks, and `opd_weights`. Detached.
    """
    lengths = row_lengths(data["response_mask"])
    eligible = torch.nested.to_padded_tensor(jagged(eligible_tokens(data).float(), lengths), 0.0)
    # verl's `agg_loss` is linear in the losses, so its gradient holds the weights of any `loss_agg_mode`, also of modes
    # that a later verl adds. `enable_grad`: passes without gradient need the weights too.
    with torch.enable_grad():
        losses = torch.zeros_like(eligible, requires_grad=True)
        total = agg_loss(
            losses,
            eligible,
            config.loss_agg_mode,
            dp_size=number(data, "dp_size"),
            batch_num_tokens=max(number(data, OPD_NUM_TOKENS if OPD_WEIGHTS in data else "batch_num_tokens"), 1),
            global_batch_size=number(data, "global_batch_size"),
            loss_scale_factor=config.loss_scale_factor,
        )
        (padded,) = torch.autograd.grad(total, losses)
    columns = torch.arange(eligible.shape[1], device=eligible.device)
    weights = padded[columns < lengths[:, None]]
    return weights * data[OPD_WEIGHTS].values() if OPD_WEIGHTS in data else weights
