"""The typed `opd:` section of the config, and every check that needs nothing but the config itself."""

from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.errors import ConfigError


class Support(StrEnum):
    """The token ids an objective looks at."""

    sampled = "sampled"
    student_topk = "student_topk"


@dataclass
class TeacherConfig:
    """The teacher and the Ray actors that score with it."""

    path: str = ""
    """Folder or hub name of a Hugging Face causal LM. Required."""
    tokenizer_path: str | None = None
    """Its tokenizer, where it does not lie beside the model."""
    dtype: str = "bfloat16"
    """Dtype of the weights; the LM head's reductions are float32 whatever this is."""
    temperature: float = 1.0
    """Divides the teacher's logits; must equal the rollout temperature."""
    nnodes: int = 1
    """Nodes of the teacher's own resource pool."""
    n_gpus_per_node: int = 1
    """Teacher replicas (one device each) per node."""
    max_tokens_per_batch: int = 16384
    """Budget of one forward pass, padded tokens."""
    chunk_rows: int = 1024
    """Rows of logits that exist at one time."""
    max_state_gib: float = 2.0
    """Host or device memory for the open step's hidden states, per replica."""
    timeout_s: float = 600.0
    """A replica that has not answered by then counts as lost."""
    load_timeout_s: float = 1800.0
    """Seconds a replica may take to load its weights, their download included."""
    attn_implementation: str = "sdpa"
    """transformers attention of the teacher."""
    trust_remote_code: bool = False
    """Lets the teacher's repository run its own model code."""


@dataclass
class ObjectiveConfig:
    """What is minimised."""

    support: Support = Support.sampled
    """`sampled`: clipped surrogate on r_t. `student_topk`: exact reverse KL on the student's top-k."""
    k: int = 0
    """Size of the student's top-k support; 0 where no objective and no reward hook reads one."""


@dataclass
class OpdConfig:
    """The section `opd:`. Unknown keys are errors."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rewards: list[str] = field(default_factory=lambda: ["reverse_kl"])
    """Reward hooks whose sum is r_t."""
    plugins: list[str] = field(default_factory=list)
    """Modules to import in every process: they register the user's own hooks."""
    seed_rollouts: bool = False
    """Gives every rollout its own seed, so that a run can be repeated. verl's `rollout.full_determinism` does too, and
    adds vLLM's batch-invariant kernels, which need a GPU."""
    poll_interval_s: float = 0.2
    """How often the trainer looks for finished rollouts (verl's own value is 2 s)."""


def parse_opd(config: DictConfig) -> OpdConfig:
    """The `opd:` section as a typed object.

    Raises:
        ConfigError: unknown key, wrong type, or no teacher; the message names key, value and remedy.
    """
    if "opd" not in config:
        raise ConfigError("opd", None, "the section is missing", "start from a recipe: `recipe=opd`")
    if not OmegaConf.select(config, "opd.teacher.path"):
        raise ConfigError("opd.teacher.path", None, "no teacher is set", "opd.teacher.path=/path/to/teacher")
    try:
        section = OmegaConf.to_container(config.opd, resolve=True)  # `${...}` points outside the section
        merged: Any = OmegaConf.merge(OmegaConf.structured(OpdConfig), section)
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "", str(error.msg).splitlines()[0]
        value, remedy = OmegaConf.select(config.opd, key), "recipe/opd.yaml shows every key with a value that works"
        raise ConfigError(f"opd.{key}".rstrip("."), value, problem, remedy) from error
    opd: Any = OmegaConf.to_object(merged)
    return opd


def import_plugins(opd: OpdConfig) -> None:
    """Imports the user's modules named in `opd.plugins`."""
    for module in opd.plugins:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError("opd.plugins", module, str(error), "put the module on PYTHONPATH") from error
