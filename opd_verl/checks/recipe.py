"""Checks of the settings that every recipe with a teacher needs."""

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.device import get_device_name

from opd_verl.checks.batch import check_data, check_mini_batch, check_token_budget
from opd_verl.checks.teacher import check_colocated, check_shards, check_sync, check_teacher
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, every_teacher, is_exact, teacher_key
from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.hooks import REWARD_HOOKS
from opd_verl.schema import MODEL_TYPE

NEEDED: dict[str, tuple[str, ...]] = {
    "algorithm.adv_estimator": ("opd",),
    "trainer.v1.trainer_mode": ("opd",),
    "trainer.use_v1": ("True",),
    "model_engine": ("dp",),
    "actor_rollout_ref.actor.strategy": ("fsdp", "fsdp2"),
    "actor_rollout_ref.model.model_type": (MODEL_TYPE,),
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": (
        "opd_verl.training.rollout.agent_loop.OpdAgentLoopManager",
    ),
    "actor_rollout_ref.model.use_fused_kernels": ("False",),
    "algorithm.use_kl_in_reward": ("False",),
    "distillation.enabled": ("False",),
}
"""Settings of the recipe that OPD cannot do without, with the values that work."""
UNTRUNCATED: dict[str, tuple[float, ...]] = {"top_p": (1.0,), "top_k": (-1, 0)}
"""Sampling settings under which the rollout draws from the whole distribution."""


def check_recipe_is_whole(config: DictConfig, opd: OpdConfig) -> None:
    """No override may take away a setting that OPD needs."""
    for key, allowed in NEEDED.items():
        value = OmegaConf.select(config, key)
        if str(value) not in allowed:
            problem = f"recipe=opd needs {' or '.join(allowed)}"
            raise ConfigError(key, value, problem, "drop the override, or recipe=grpo")


def check_policy_loss(config: DictConfig, opd: OpdConfig) -> None:
    """The policy loss must be on where the actor trains on an advantage, and off (`opd_none`) where it does not."""
    key = "actor_rollout_ref.actor.policy_loss.loss_mode"
    value, silent = OmegaConf.select(config, key), is_exact(opd) and not opd.mix.task
    if silent != (value == "opd_none"):
        expected = "opd_none" if silent else "opd"
        problem = f"opd.objective.support={opd.objective.support}, opd.mix.task={opd.mix.task} need {expected}"
        raise ConfigError(key, value, problem, f"{key}={expected}")
    if value not in POLICY_LOSS_REGISTRY:
        problem = f"verl has no such policy loss (there are: {', '.join(sorted(POLICY_LOSS_REGISTRY))})"
        raise ConfigError(key, value, problem, f"{key}=opd")


def check_rewards(config: DictConfig, opd: OpdConfig) -> None:
    """Every reward hook must be registered, and the sampled objective needs a hook: r_t would be 0 everywhere."""
    if not opd.rewards and not is_exact(opd):
        raise ConfigError("opd.rewards", opd.rewards, "nothing to learn from", "opd.rewards=[reverse_kl]")
    for name in opd.rewards:
        if name not in REWARD_HOOKS:
            problem = f"no such reward hook (there are: {', '.join(sorted(REWARD_HOOKS))})"
            raise ConfigError("opd.rewards", name, problem, "register it in a module named in opd.plugins")


def check_privileged_context(config: DictConfig, opd: OpdConfig) -> None:
    """The privileged context is registered, and its limit leaves room for a token."""
    if opd.context.name is not None and opd.context.name not in CONTEXT_HOOKS:
        problem = f"no such context (there are: {', '.join(sorted(CONTEXT_HOOKS))})"
        raise ConfigError("opd.context.name", opd.context.name, problem, "register it in a module named in opd.plugins")
    if opd.context.max_tokens < 1:
        raise ConfigError("opd.context.max_tokens", opd.context.max_tokens, "must be positive", "drop the override")


def check_samples(config: DictConfig, opd: OpdConfig) -> None:
    """`opd.samples.every` may be 0, which means no samples; a page needs at least one rollout."""
    for key, value, least in (("every", opd.samples.every, 0), ("count", opd.samples.count, 1)):
        if value < least:
            problem = "must not be negative" if least == 0 else "must be positive"
            raise ConfigError(f"opd.samples.{key}", value, problem, "opd.samples.every=0 for no samples")


def check_temperature(config: DictConfig, opd: OpdConfig) -> None:
    """Student and teacher have one temperature: r_t compares their distributions."""
    rollout = config.actor_rollout_ref.rollout.temperature
    for name, teacher in every_teacher(opd).items():
        if teacher.temperature != rollout:
            problem, remedy = f"the rollout temperature is {rollout}", "leave it unset: it follows the rollout"
            raise ConfigError(f"{teacher_key(name)}.temperature", teacher.temperature, problem, remedy)
    if rollout <= 0:
        raise ConfigError("actor_rollout_ref.rollout.temperature", rollout, "must be positive", "use 1.0")


def check_sampling(config: DictConfig, opd: OpdConfig) -> None:
    """The rollout is not truncated: r_t, the ratio and the KL assume that tokens are drawn from p_old itself."""
    for name, allowed in UNTRUNCATED.items():
        key, value = f"actor_rollout_ref.rollout.{name}", config.actor_rollout_ref.rollout[name]
        if value not in allowed:
            problem = "rollouts from a truncated distribution bias r_t; student and teacher normalise over all ids"
            raise ConfigError(key, value, problem, f"{key}={allowed[0]}")


def check_rollout_correction(config: DictConfig, opd: OpdConfig) -> None:
    """verl's rollout correction is off: it works inside the advantage step, which OPD replaces."""
    correction = config.algorithm.get("rollout_correction") or {}
    for name in ("bypass_mode", "rollout_is", "rollout_rs"):
        if correction.get(name):
            key = f"algorithm.rollout_correction.{name}"
            raise ConfigError(key, correction.get(name), "not available under recipe=opd", f"~{key} or {key}=null")


def check_cluster(config: DictConfig, opd: OpdConfig) -> None:
    """`trainer.device` must name this machine's device: verl would wait for missing GPUs, or leave its GPUs idle."""
    key, value, device = "trainer.device", config.trainer.device, get_device_name()
    if device == "cpu" and value != "cpu":
        raise ConfigError(key, value, "this machine has no accelerator that torch can use", "cluster=local_cpu")
    if device != "cpu" and value == "cpu":
        problem = f"this torch is built for {device}"
        raise ConfigError(
            key, value, problem, "VERL_PLATFORM=cpu if there is no accelerator, else drop cluster=local_cpu"
        )


CHECKS = (
    check_recipe_is_whole,
    check_policy_loss,
    check_rewards,
    check_privileged_context,
    check_sync,
    check_samples,
    check_teacher,
    check_colocated,
    check_shards,
    check_mini_batch,
    check_token_budget,
    check_temperature,
    check_sampling,
    check_rollout_correction,
    check_cluster,
    check_data,
)
