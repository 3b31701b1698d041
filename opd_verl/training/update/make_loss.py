"""From the `opd:` section to the exact terms of the actor loss."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.utils.config import omega_conf_to_dataclass

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ObjectiveConfig
from opd_verl.objective_hooks import OBJECTIVE_HOOKS, ObjectiveHook, ObjectiveInputs
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Placement, Support, Tail, Weighting
from opd_verl.objectives.policy_gradient import policy_gradient_topk
from opd_verl.training.update.actor_loss import OpdLoss
from opd_verl.training.update.terms import Terms


@dataclass(frozen=True)
class DivergenceObjective:
    """An exact divergence on the support (objectives/README.md 2, 3)."""

    divergence: Divergence
    tail: Tail
    beta: float

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """[N], nats."""
        return support_divergence(
            inputs.log_p_support, inputs.log_q_support, self.divergence, self.tail, self.beta, inputs.member
        )


@dataclass(frozen=True)
class PolicyGradientObjective:
    """Rethinking's published runs: a clipped policy gradient per support token (objectives/README.md 4)."""

    weighting: Weighting

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """[N]; a surrogate, not a divergence."""
        assert inputs.log_p_old_support is not None
        return policy_gradient_topk(
            inputs.log_p_support,
            inputs.log_p_old_support,
            inputs.log_q_support,
            self.weighting,
            inputs.eps_low,
            inputs.eps_high,
            inputs.member,
        )


def objective(config: ObjectiveConfig) -> ObjectiveHook | None:
    """The loss per token on the support; None: verl's policy loss on the sampled token is the whole objective."""
    if config.name is not None:
        return OBJECTIVE_HOOKS[config.name]
    if config.support is Support.sampled:
        return None
    if config.paper_compat:
        return PolicyGradientObjective(config.paper_compat_weights)
    return DivergenceObjective(config.divergence, config.tail, config.beta)


def make_terms(opd: OpdConfig, eps_low: float, eps_high: float) -> Terms:
    """The exact terms of `opd`; the clip range is the policy loss's own."""
    with_forward_kl = opd.forward_kl.placement is not Placement.none
    return Terms(
        support=opd.objective.support,
        k=opd.objective.k,
        objective=objective(opd.objective),
        coefficient=opd.mix.opd,
        forward_kl_k=opd.forward_kl.k if with_forward_kl else 0,
        forward_kl_coefficient=opd.forward_kl.coefficient,
        eps_low=eps_low,
        eps_high=eps_high,
        cross_entropy=opd.off_policy.cross_entropy if opd.off_policy.share else 0.0,
    )


def make_loss(actor: DictConfig, opd: OpdConfig) -> OpdLoss:
    """The actor's loss from verl's actor section and ours."""
    changes = {
        "config": {},
        "policy_only": {"entropy_coeff": 0.0, "use_kl_loss": False},
        "regularisers": {"policy_loss": {"loss_mode": "opd_none"}},
    }
    merged: Any = {name: OmegaConf.merge(actor, change) for name, change in changes.items()}
    configs: Any = {name: omega_conf_to_dataclass(config) for name, config in merged.items()}
    terms = make_terms(opd, configs["config"].clip_ratio_low, configs["config"].clip_ratio_high)
    return OpdLoss(**configs, terms=terms, own_tokens=not opd.mix.task)
