"""Checks that read the config alone."""

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pyarrow.parquet import read_schema
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.device import get_device_name

from opd_verl.config import OpdConfig, every_teacher, is_exact, teacher_key
from opd_verl.config_sections import Engine
from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.engine import MODEL_TYPE
from opd_verl.errors import ConfigError
from opd_verl.hooks import REWARD_HOOKS
from opd_verl.hydra_values import strings
from opd_verl.teacher.scorer import DTYPES
from opd_verl.teacher.settings import WIRE_DTYPES

NEEDED: dict[str, tuple[str, ...]] = {
    "algorithm.adv_estimator": ("opd",),
    "trainer.v1.trainer_mode": ("opd",),
    "trainer.use_v1": ("True",),
    "model_engine": ("dp",),
    "actor_rollout_ref.actor.strategy": ("fsdp", "fsdp2"),
    "actor_rollout_ref.model.model_type": (MODEL_TYPE,),
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": ("opd_verl.agent_loop.OpdAgentLoopManager",),
    "actor_rollout_ref.model.use_fused_kernels": ("False",),
    "algorithm.use_kl_in_reward": ("False",),
    "distillation.enabled": ("False",),
}
"""Settings that the recipe makes and that OPD cannot do without."""
POSITIVE = (
    "nnodes",
    "n_gpus_per_node",
    "shards",
    "max_tokens_per_batch",
    "chunk_rows",
    "max_state_gib",
    "max_queued",
    "timeout_s",
    "load_timeout_s",
)
MOST_COLOCATED = 2
"""Of verl's three processes on a device of the trainer's, less its worker; its rollout servers take no share."""
UNTRUNCATED: dict[str, tuple[float, ...]] = {"top_p": (1.0,), "top_k": (-1, 0)}


def check_recipe_is_whole(config: DictConfig, opd: OpdConfig) -> None:
    """No override may take away what OPD is made of."""
    for key, allowed in NEEDED.items():
        value = OmegaConf.select(config, key)
        if str(value) not in allowed:
            problem = f"recipe=opd needs {' or '.join(allowed)}"
            raise ConfigError(key, value, problem, "drop the override, or recipe=grpo")


def check_policy_loss(config: DictConfig, opd: OpdConfig) -> None:
    """verl's policy loss must be there where an advantage is trained on, and silent where none is."""
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
    """Every reward hook must be registered, and the sampled objective needs one: without, r_t is 0 everywhere."""
    if not opd.rewards and not is_exact(opd):
        raise ConfigError("opd.rewards", opd.rewards, "nothing to learn from", "opd.rewards=[reverse_kl]")
    for name in opd.rewards:
        if name not in REWARD_HOOKS:
            problem = f"no such reward hook (there are: {', '.join(sorted(REWARD_HOOKS))})"
            raise ConfigError("opd.rewards", name, problem, "register it in a module named in opd.plugins")


def check_privileged_context(config: DictConfig, opd: OpdConfig) -> None:
    """The context is registered, and its limit leaves room for one."""
    if opd.context.name is not None and opd.context.name not in CONTEXT_HOOKS:
        problem = f"no such context (there are: {', '.join(sorted(CONTEXT_HOOKS))})"
        raise ConfigError("opd.context.name", opd.context.name, problem, "register it in a module named in opd.plugins")
    if opd.context.max_tokens < 1:
        raise ConfigError("opd.context.max_tokens", opd.context.max_tokens, "must be positive", "drop the override")


def check_sync(config: DictConfig, opd: OpdConfig) -> None:
    """Only a teacher that began as the student can take the student's weights, and only whole ones."""
    key, every, model = "opd.teacher.sync_every", opd.teacher.sync_every, config.actor_rollout_ref.model
    if every < 0:
        raise ConfigError(key, every, "must not be negative", f"{key}=0")
    if every and opd.teacher.path != model.path:
        problem = f"the teacher {opd.teacher.path} is not the student {model.path}"
        raise ConfigError(key, every, problem, "opd.teacher.path='${actor_rollout_ref.model.path}'")
    if every and (model.get("lora_rank", 0) or model.get("lora", {}).get("rank", 0)):
        raise ConfigError(key, every, "LoRA adapters are not merged into a snapshot", f"{key}=0")


def check_samples(config: DictConfig, opd: OpdConfig) -> None:
    """0 steps means no samples; no rollouts on a page mean nothing."""
    for key, value, least in (("every", opd.samples.every, 0), ("count", opd.samples.count, 1)):
        if value < least:
            problem = "must not be negative" if least == 0 else "must be positive"
            raise ConfigError(f"opd.samples.{key}", value, problem, "opd.samples.every=0 for no samples")


def check_teacher(config: DictConfig, opd: OpdConfig) -> None:
    """What the teachers' actors would refuse, minutes later: a dtype, and sizes that are not positive."""
    for section, teacher in every_teacher(opd).items():
        key = teacher_key(section)
        if teacher.dtype not in DTYPES:
            problem = f"the teacher loads in {', '.join(DTYPES)}"
            raise ConfigError(f"{key}.dtype", teacher.dtype, problem, f"{key}.dtype=bfloat16")
        if teacher.wire_dtype not in WIRE_DTYPES:
            problem = f"log-probs travel as {' or '.join(WIRE_DTYPES)}"
            raise ConfigError(f"{key}.wire_dtype", teacher.wire_dtype, problem, f"{key}.wire_dtype=float16")
        for name in POSITIVE:
            value = getattr(teacher, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{key}.{name}", value, "must be positive", "drop the override")


def check_shards(config: DictConfig, opd: OpdConfig) -> None:
    """A replica never spans nodes: its shards gather every layer of every forward pass from one another."""
    for section, teacher in every_teacher(opd).items():
        key, devices = teacher_key(section), teacher.n_gpus_per_node
        if devices % teacher.shards:
            problem = f"the {devices} devices of a node ({key}.n_gpus_per_node) are not a multiple of it"
            remedy = f"{key}.n_gpus_per_node={-(-devices // teacher.shards) * teacher.shards}, or fewer shards"
            raise ConfigError(f"{key}.shards", teacher.shards, problem, remedy)


def check_colocated(config: DictConfig, opd: OpdConfig) -> None:
    """A device of the trainer's has room for two more processes, each with a model that fits it whole."""
    colocated = {teacher_key(name): one for name, one in every_teacher(opd).items() if one.colocate}
    for key, teacher in colocated.items():
        if teacher.shards > 1:
            problem = "a colocated teacher lies whole on each of the trainer's devices"
            raise ConfigError(f"{key}.shards", teacher.shards, problem, f"{key}.shards=1, or {key}.colocate=false")
        if teacher.engine is not Engine.scorer:
            problem = "a vLLM server does not leave its devices"
            raise ConfigError(f"{key}.colocate", True, problem, f"teacher=scorer, or {key}.colocate=false")
    if len(colocated) > MOST_COLOCATED:
        problem = f"verl's resource pools have room for {MOST_COLOCATED} beside the actor ({', '.join(colocated)} are)"
        raise ConfigError("opd.teachers", list(opd.teachers), problem, "colocate=false for the others")


def check_mini_batch(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """Every rank of the trainer gets as many rollouts of a mini-batch; verl's workers assert it, after minutes."""
    key, rollouts = "actor_rollout_ref.actor.ppo_mini_batch_size", config.actor_rollout_ref.rollout.n
    prompts, devices = config.actor_rollout_ref.actor.ppo_mini_batch_size, config.trainer.n_gpus_per_node
    ranks = config.trainer.nnodes * devices
    if prompts * rollouts % ranks:
        problem = f"its {prompts * rollouts} rollouts are not a multiple of the trainer's {ranks} devices"
        fitting = ranks // math.gcd(ranks, rollouts)
        remedy = f"{key}={max(round(prompts / fitting), 1) * fitting}, or a trainer of other size"
        raise ConfigError(key, prompts, problem, remedy)


def check_token_budget(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """A micro-batch must hold the longest sequence; verl asserts it when the first one comes."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    budgets = {
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu),
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        ),
    }
    for key, (read, budget) in budgets.items():
        if read and budget < longest:
            problem = f"a sequence may have {longest} tokens (data.max_prompt_length + data.max_response_length)"
            raise ConfigError(key, budget, problem, f"{key}={longest}")


def check_temperature(config: DictConfig, opd: OpdConfig) -> None:
    """Student and teacher must be divided by one temperature, or r_t compares two different things."""
    rollout = config.actor_rollout_ref.rollout.temperature
    for name, teacher in every_teacher(opd).items():
        if teacher.temperature != rollout:
            problem, remedy = f"the rollout temperature is {rollout}", "leave it unset: it follows the rollout"
            raise ConfigError(f"{teacher_key(name)}.temperature", teacher.temperature, problem, remedy)
    if rollout <= 0:
        raise ConfigError("actor_rollout_ref.rollout.temperature", rollout, "must be positive", "use 1.0")


def check_sampling(config: DictConfig, opd: OpdConfig) -> None:
    """A truncated sampler draws from another distribution than the p_old that r_t, the ratio and the KL are made of."""
    for name, allowed in UNTRUNCATED.items():
        key, value = f"actor_rollout_ref.rollout.{name}", config.actor_rollout_ref.rollout[name]
        if value not in allowed:
            problem = "rollouts from a truncated distribution bias r_t; student and teacher normalise over all ids"
            raise ConfigError(key, value, problem, f"{key}={allowed[0]}")


def check_rollout_correction(config: DictConfig, opd: OpdConfig) -> None:
    """verl's rollout correction works inside the step that OPD replaces."""
    correction: Any = config.algorithm.get("rollout_correction") or {}
    for name in ("bypass_mode", "rollout_is", "rollout_rs"):
        if correction.get(name):
            key = f"algorithm.rollout_correction.{name}"
            raise ConfigError(key, correction.get(name), "not available under recipe=opd", f"~{key} or {key}=null")


def check_data(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """The data files must be there."""
    for key in ("data.train_files", "data.val_files"):
        for file in strings(OmegaConf.select(config, key)) or [None]:
            if not file or ("://" not in file and not Path(file).expanduser().exists()):
                raise ConfigError(key, file, "no such file", f"{key}=/path/to/prompts.parquet")
            if file.endswith(".parquet") and "://" not in file:
                check_columns(key, Path(file).expanduser(), config.data.prompt_key)


def check_columns(key: str, file: Path, prompt_key: str) -> None:
    """verl's reward manager reads a ground truth of every sample, also where nothing is trained on it."""
    names = set(read_schema(file).names)
    for column in (prompt_key, "data_source", "reward_model"):
        if column not in names:
            remedy = "add it; without answers use reward_model={'style': 'rule', 'ground_truth': ''}"
            raise ConfigError(key, str(file), f"no column {column!r} (there are: {', '.join(sorted(names))})", remedy)


def check_cluster(config: DictConfig, opd: OpdConfig) -> None:
    """Without accelerators verl would wait for them for ever; the other way round they would idle."""
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
