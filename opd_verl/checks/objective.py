"""Checks of the objective, the token masks and weights, the advantage and the mixture."""

import math
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, is_exact
from opd_verl.hooks import MASK_HOOKS, WEIGHT_HOOKS
from opd_verl.objective_hooks import OBJECTIVE_HOOKS
from opd_verl.objectives.names import TOPK_SUPPORTS, Divergence, Placement, Support

ULYSSES = (
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size",  # deprecated; verl copies it to the other key
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
)
NEED_MORE = ("gae", "remax", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline")
"""verl's advantage estimators that OPD cannot mix in: they read a critic's values or other fields that OPD lacks."""
RANGES: dict[str, tuple[float, float]] = {
    "teacher.max_missing_share": (0.0, 1.0),
    "forward_kl.share": (0.0, 1.0),
    "forward_kl.coefficient": (0.0, math.inf),
    "off_policy.share": (0.0, 1.0),
    "off_policy.cross_entropy": (0.0, math.inf),
    "tokens.share": (0.0, 1.0),
    "tokens.low_entropy": (0.0, math.inf),
    "tokens.divergence_quantile": (0.0, 1.0),
    "tokens.first_position": (0, math.inf),
    "tokens.correct": (0.0, math.inf),
    "tokens.incorrect": (0.0, math.inf),
    "tokens.tail_tokens": (1, math.inf),
    "advantage.gamma": (0.0, 1.0),
    "advantage.shaping_alpha": (0.0, math.inf),
    "diagnostics.every": (0, math.inf),
    "diagnostics.k": (1, math.inf),
    "diagnostics.depth_buckets": (1, math.inf),
    "mix.opd": (0.0, math.inf),
    "mix.task": (0.0, math.inf),
}
"""Least and greatest value of a key of `opd:`; both ends belong to the range."""
POSITIVE = ("tokens.half_life", "advantage.shaping_kappa", "advantage.clamp", "fused_rows")
"""Keys of `opd:` that must be above 0 where they are set."""


def check_support(config: DictConfig, opd: OpdConfig) -> None:
    """Support, k and divergence must fit together."""
    objective = opd.objective
    needs_k = objective.support in TOPK_SUPPORTS or "reverse_kl_baseline" in opd.rewards
    if objective.k < (1 if needs_k else 0):
        raise ConfigError("opd.objective.k", objective.k, "a top-k support needs k >= 1", "opd.objective.k=16")
    if objective.divergence is Divergence.jsd and not 0.0 < objective.beta < 1.0:
        raise ConfigError("opd.objective.beta", objective.beta, "must lie between 0 and 1", "opd.objective.beta=0.5")
    if objective.paper_compat and objective.support not in TOPK_SUPPORTS:
        problem = f"paper_compat is a policy gradient on a top-k, not on {objective.support}"
        raise ConfigError("opd.objective.paper_compat", True, problem, "opd.objective.support=student_topk")
    if objective.name is not None and objective.support not in TOPK_SUPPORTS:
        problem = f"an objective of your own reads a top-k, not {objective.support}"
        key, value = "opd.objective.support", objective.support.value
        raise ConfigError(key, value, problem, "opd.objective.support=student_topk")


def check_forward_kl(config: DictConfig, opd: OpdConfig) -> None:
    """The extra forward KL needs ids, and an objective that does not read the whole vocabulary."""
    if opd.forward_kl.placement is Placement.none:
        return
    if opd.forward_kl.k < 1:
        raise ConfigError("opd.forward_kl.k", opd.forward_kl.k, "needs at least one id", "opd.forward_kl.k=16")
    if opd.objective.support is Support.full:
        problem = "support=full reads the whole vocabulary; the two are not combined"
        key, value = "opd.forward_kl.placement", opd.forward_kl.placement.value
        raise ConfigError(key, value, problem, "opd.objective.support=sampled")


def check_names(config: DictConfig, opd: OpdConfig) -> None:
    """Every mask, weight, objective and task estimator must be registered."""
    require_known("opd.tokens.masks", opd.tokens.masks, MASK_HOOKS, "token mask")
    require_known("opd.tokens.weights", opd.tokens.weights, WEIGHT_HOOKS, "token weight")
    named = [] if opd.objective.name is None else [opd.objective.name]
    require_known("opd.objective.name", named, OBJECTIVE_HOOKS, "objective")
    if opd.mix.task:
        check_estimator(opd.mix.estimator)


def check_estimator(name: str) -> None:
    """The task reward's estimator must be registered with verl, and need nothing but task rewards."""
    known = {str(getattr(name, "value", name)) for name in ADV_ESTIMATOR_REGISTRY} - set(NEED_MORE)
    if name not in known:
        problem = "needs more than task rewards" if name in NEED_MORE else "verl has no such advantage estimator"
        problem = f"{problem} (there are: {', '.join(sorted(known))})"
        raise ConfigError("opd.mix.estimator", name, problem, "opd.mix.estimator=grpo")


def require_known(key: str, names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ConfigError for the first name that is not registered."""
    there = sorted(known)
    for name in names:
        if name not in there:
            problem = f"no such {what} (there are: {', '.join(there) or 'none'})"
            raise ConfigError(key, name, problem, "register it in a module named in opd.plugins")


def check_numbers(config: DictConfig, opd: OpdConfig) -> None:
    """Shares, quantiles, weights and factors lie within their ranges."""
    section = OmegaConf.structured(opd)
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(section, key)
        if not low <= value <= high:
            raise ConfigError(f"opd.{key}", value, f"must lie in {low} .. {high}", "drop the override")
    for key in POSITIVE:
        value = OmegaConf.select(section, key)
        if value is not None and value <= 0:
            raise ConfigError(f"opd.{key}", value, "must be positive", "drop the override")
    if not opd.mix.opd and not opd.mix.task:
        raise ConfigError("opd.mix.opd", opd.mix.opd, "both weights of the mixture are 0", "opd.mix.opd=1")


def check_sequence_parallel(config: DictConfig, opd: OpdConfig) -> None:
    """Under Ulysses a rank holds a slice of every sequence; the fused path and supports do not gather the slices."""
    for key in ULYSSES:
        if (value := OmegaConf.select(config, key, default=1)) <= 1:
            continue
        if opd.fused:
            raise ConfigError(key, value, "the fused LM head does not gather sequence slices", "opd.fused=false")
        if is_exact(opd) or opd.objective.k or opd.forward_kl.placement is not Placement.none:
            raise ConfigError(key, value, "supports are not gathered over sequence slices", f"{key}=1")


CHECKS = (
    check_support,
    check_forward_kl,
    check_names,
    check_numbers,
    check_sequence_parallel,
)
