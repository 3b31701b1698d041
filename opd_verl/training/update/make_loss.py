"""Builds the actor's loss from the `opd:` section and verl's actor section."""

from typing import cast

from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ObjectiveConfig
from opd_verl.objective_hooks import OBJECTIVE_HOOKS, ObjectiveHook
from opd_verl.objectives.names import Placement, Support
from opd_verl.training.update.actor_loss import OpdLoss
from opd_verl.training.update.terms import DivergenceObjective, PolicyGradientObjective, Terms


def objective(config: ObjectiveConfig) -> ObjectiveHook | None:
    """The loss per token on the support; None where verl's policy loss on the sampled token is the whole objective."""
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


def actor_config(actor: DictConfig, changes: dict[str, object]) -> ActorConfig:
    """verl's actor section with some keys changed, as verl's own dataclass."""
    return cast(ActorConfig, omega_conf_to_dataclass(cast(DictConfig, OmegaConf.merge(actor, changes))))


def make_loss(actor: DictConfig, opd: OpdConfig) -> OpdLoss:
    """The actor's loss from verl's actor section and the `opd:` section."""
    config = actor_config(actor, {})
    return OpdLoss(
        config=config,
        policy_only=actor_config(actor, {"entropy_coeff": 0.0, "use_kl_loss": False}),
        regularisers=actor_config(actor, {"policy_loss": {"loss_mode": "opd_none"}}),
        terms=make_terms(opd, config.clip_ratio_low, config.clip_ratio_high),
        own_tokens=not opd.mix.task,
    )
