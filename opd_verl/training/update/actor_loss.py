"""The actor loss: verl's `ppo_loss`, plus the exact terms, each over its own tokens of the global mini-batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss

from opd_verl.schema import OPD_NUM_TOKENS, OPD_WEIGHTS, TERM_NAMES
from opd_verl.training.token_positions import jagged, row_lengths
from opd_verl.training.update.terms import Terms


@dataclass(frozen=True)
class OpdLoss:
    """`set_loss_fn`'s argument, sent to every actor worker; the engine reads `terms` to know what to compute.

    config: verl's actor config. policy_only: the same without entropy bonus and reference KL; regularisers: with these
    two alone, which see all response tokens. own_tokens: whether the policy loss sees only the tokens eligible for
    distillation (not so where a task reward is mixed in).
    """

    config: Any
    policy_only: Any
    regularisers: Any
    terms: Terms
    own_tokens: bool

    @property
    def needs_log_prob_gradient(self) -> bool:
        """Whether verl's part depends on the sampled token's log-prob or on the entropy."""
        regularised = self.config.entropy_coeff or self.config.use_kl_loss
        return self.config.policy_loss.loss_mode != "opd_none" or bool(regularised)

    def __call__(
        self, model_output: dict[str, Tensor], data: Any, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one micro-batch (times verl's dp_size, which FSDP's gradient mean divides out) and metrics.

        Every numerator is masked; the denominator of each component is its own count of eligible tokens over the
        mini-batch and all ranks, so that micro-batches and rank count change nothing. No token at all: loss 0.
        """
        tu.assign_non_tensor(data, batch_num_tokens=max(data["batch_num_tokens"], 1))
        loss, metrics = self.policy_part(model_output, data, dp_group)
        if self.terms.any or self.terms.full:
            exact, found = self.exact_part(model_output, data)
            loss, metrics = loss + exact, metrics | found
        return loss, metrics

    def policy_part(self, model_output: dict[str, Tensor], data: Any, dp_group: Any) -> tuple[Tensor, dict[str, Any]]:
        """verl's policy loss on the eligible tokens, its entropy bonus and reference KL on all response tokens."""
        if not (OPD_WEIGHTS in data and self.own_tokens):
            return ppo_loss(config=self.config, model_output=model_output, data=data, dp_group=dp_group)
        rest, rest_metrics = ppo_loss(config=self.regularisers, model_output=model_output, data=data, dp_group=dp_group)
        eligible = data.copy()
        mask = eligible_tokens(data)
        eligible["response_mask"] = jagged(mask.to(data["response_mask"].dtype), row_lengths(data["response_mask"]))
        tu.assign_non_tensor(eligible, batch_num_tokens=max(data[OPD_NUM_TOKENS], 1))
        sampled = {name: value for name, value in model_output.items() if name != "entropy"}
        policy, metrics = ppo_loss(config=self.policy_only, model_output=sampled, data=eligible, dp_group=dp_group)
        return policy + rest, rest_metrics | metrics

    def exact_part(self, model_output: dict[str, Tensor], data: Any) -> tuple[Tensor, dict[str, Any]]:
        """The exact terms: from the engine where it formed their gradient, else from log-probs at their columns."""
        weights = token_weights(data, self.config)
        values = {name: model_output[name] for name in TERM_NAMES if name in model_output}
        metrics: dict[str, Any] = {
            f"opd/{name}": Metric(value=(value.detach() * weights).sum(), aggregation=AggregationType.SUM)
            for name, value in values.items()
        }
        if "opd_loss" in model_output:
            return model_output["opd_loss"], metrics
        return torch.stack([(value * weights).sum() for value in values.values()]).sum(), metrics


def eligible_tokens(data: Any) -> Tensor:
    """Response tokens that distillation trains on, flat [N]."""
    mask = data["response_mask"].values() > 0
    return mask & (data[OPD_WEIGHTS].values() > 0) if OPD_WEIGHTS in data else mask


def token_weights(data: Any, config: Any) -> Tensor:
    """w_t [N] such that `sum_t w_t l_t` is the micro-batch's share of the mini-batch's mean (times dp_size).

    verl's `agg_loss` is linear in the losses, so its gradient holds the weights of any `loss_agg_mode`.
    """
    lengths = row_lengths(data["response_mask"])
    eligible = torch.nested.to_padded_tensor(jagged(eligible_tokens(data).float(), lengths), 0.0)
    with torch.enable_grad():
        losses = torch.zeros_like(eligible, requires_grad=True)
        total = agg_loss(
            losses,
            eligible,
            config.loss_agg_mode,
            dp_size=data["dp_size"],
            batch_num_tokens=max(data[OPD_NUM_TOKENS] if OPD_WEIGHTS in data else data["batch_num_tokens"], 1),
            global_batch_size=data["global_batch_size"],
            loss_scale_factor=config.loss_scale_factor,
        )
        (padded,) = torch.autograd.grad(total, losses)
    columns = torch.arange(eligible.shape[1], device=eligible.device)
    weights = padded[columns < lengths[:, None]]
    return weights * data[OPD_WEIGHTS].values() if OPD_WEIGHTS in data else weights
