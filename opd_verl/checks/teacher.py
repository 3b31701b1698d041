"""Checks of the teachers' settings: the teachers' actors would refuse the same settings minutes later."""

from omegaconf import DictConfig

from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, every_teacher, teacher_key
from opd_verl.config.sections import Engine
from opd_verl.teacher.scoring.scorer import DTYPES
from opd_verl.teacher.settings import WIRE_DTYPES

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
"""verl allows three processes on a device of the trainer's pool. Its worker is the first; rollout servers take none."""


def check_sync(config: DictConfig, opd: OpdConfig) -> None:
    """A teacher that takes the student's weights must begin as the student, and without LoRA."""
    key, every, model = "opd.teacher.sync_every", opd.teacher.sync_every, config.actor_rollout_ref.model
    if every < 0:
        raise ConfigError(key, every, "must not be negative", f"{key}=0")
    if every and opd.teacher.path != model.path:
        problem = f"the teacher {opd.teacher.path} is not the student {model.path}"
        raise ConfigError(key, every, problem, "opd.teacher.path='${actor_rollout_ref.model.path}'")
    if every and (model.get("lora_rank", 0) or model.get("lora", {}).get("rank", 0)):
        raise ConfigError(key, every, "LoRA adapters are not merged into a snapshot", f"{key}=0")


def check_teacher(config: DictConfig, opd: OpdConfig) -> None:
    """Dtypes are known and sizes positive; the teachers' actors would refuse them minutes later."""
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
    """The devices of a node must divide into whole replicas.

    A replica never spans nodes: its shards gather every layer of every forward pass from one another.
    """
    for section, teacher in every_teacher(opd).items():
        key, devices = teacher_key(section), teacher.n_gpus_per_node
        if devices % teacher.shards:
            problem = f"the {devices} devices of a node ({key}.n_gpus_per_node) are not a multiple of the shards"
            remedy = f"{key}.n_gpus_per_node={-(-devices // teacher.shards) * teacher.shards}, or fewer shards"
            raise ConfigError(f"{key}.shards", teacher.shards, problem, remedy)


def check_colocated(config: DictConfig, opd: OpdConfig) -> None:
    """A trainer's device has room for two colocated teachers, each with a whole model."""
    colocated = {teacher_key(name): teacher for name, teacher in every_teacher(opd).items() if teacher.colocate}
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
