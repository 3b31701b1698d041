"""The typed `opd:` section of the config: its dataclass, how it is parsed, and questions about its teachers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import (
    AdvantageConfig,
    Combine,
    ContextConfig,
    DiagnosticsConfig,
    ForwardKLConfig,
    MixConfig,
    NamedTeacherConfig,
    ObjectiveConfig,
    OffPolicyConfig,
    SamplesConfig,
    TeacherConfig,
    TokenConfig,
)
from opd_verl.objectives.names import Support


@dataclass
class OpdConfig:
    """The section `opd:`. Unknown keys are errors."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: dict[str, NamedTeacherConfig] = field(default_factory=dict)
    """Named teachers. Empty: use `opd.teacher`; otherwise it holds their defaults."""
    combine: Combine = Combine.route
    """How several teachers score: `route` or `average`."""
    route_field: str = "data_source"
    """Data field that picks the teacher under combine=route."""
    context: ContextConfig = field(default_factory=ContextConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    forward_kl: ForwardKLConfig = field(default_factory=ForwardKLConfig)
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    rewards: list[str] = field(default_factory=lambda: ["reverse_kl"])
    """Names of the reward hooks whose sum is r_t."""
    plugins: list[str] = field(default_factory=list)
    """Your modules, imported in every process; they register your hooks."""
    fused: bool = True
    """Whether the LM head runs in chunks of rows, without logits [tokens, vocabulary]; False: plain reference path."""
    fused_rows: int | None = None
    """Rows of logits that exist at one time in the actor; None: a number that suits the device."""
    seed_rollouts: bool = False
    """Whether every rollout gets its own seed, so that a run can be repeated. verl's `rollout.full_determinism` does so
    too, and adds vLLM's batch-invariant kernels, which need a GPU."""
    poll_interval_s: float = 0.2
    """Seconds between the trainer's looks for finished rollouts (verl's own value is 2 s)."""


def is_exact(opd: OpdConfig) -> bool:
    """Whether the objective is a loss of its own and not a policy loss on r_t."""
    return opd.objective.support is not Support.sampled or opd.objective.name is not None


def every_teacher(opd: OpdConfig) -> dict[str, TeacherConfig]:
    """All teachers of the run by name; a single teacher, `opd.teacher`, has the name ""."""
    return {**opd.teachers} or {"": opd.teacher}


def teacher_key(name: str) -> str:
    """The config key of a teacher of `every_teacher`."""
    return f"opd.teachers.{name}" if name else "opd.teacher"


def routed_by(opd: OpdConfig) -> str | None:
    """The data field that picks a rollout's teacher; None where every teacher scores every rollout."""
    return opd.route_field if opd.teachers and opd.combine is Combine.route else None


def context_tokens(opd: OpdConfig) -> int:
    """The most tokens that a privileged context adds to a prompt; 0 where there is none."""
    return opd.context.max_tokens if opd.context.name is not None else 0


def fill_teachers(section: dict[str, object]) -> None:
    """Fills in keys that a named teacher does not set, in place in the plain `opd:` section.

    Raises:
        ConfigError: a teacher has no path.
    """
    teacher, named = section.setdefault("teacher", {}), section.get("teachers")
    if not isinstance(teacher, dict) or not isinstance(named, dict) or not named:
        return  # nothing to fill, or a wrong type, which the typed section refuses
    teacher["path"] = teacher.get("path") or ""
    for name, own in named.items():
        if own is None or (isinstance(own, dict) and not own.get("path")):
            key = f"{teacher_key(name)}.path"
            raise ConfigError(key, None, "this teacher has no model", f"+{key}=/path/to/teacher")
        if isinstance(own, dict):
            named[name] = {**teacher, **own}


def parse_opd(config: DictConfig) -> OpdConfig:
    """The `opd:` section as a typed object.

    Raises:
        ConfigError: unknown key, wrong type, or no teacher; the message names key, value and remedy.
    """
    if "opd" not in config:
        raise ConfigError("opd", None, "the section is missing", "start from a recipe: `recipe=opd`")
    if not OmegaConf.select(config, "opd.teacher.path") and not OmegaConf.select(config, "opd.teachers"):
        raise ConfigError("opd.teacher.path", None, "no teacher is set", "opd.teacher.path=/path/to/teacher")
    try:
        # Resolved here: a `${...}` may point outside the section, and the section stands alone from now on.
        section = cast(dict[str, object], OmegaConf.to_container(config.opd, resolve=True))
        fill_teachers(section)
        merged = OmegaConf.merge(OmegaConf.structured(OpdConfig), section)
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "", str(error.msg).splitlines()[0]
        value, remedy = OmegaConf.select(config.opd, key), "recipe/opd.yaml shows every key with a value that works"
        raise ConfigError(f"opd.{key}".rstrip("."), value, problem, remedy) from error
    opd = cast(OpdConfig, OmegaConf.to_object(merged))
    for teacher in every_teacher(opd).values():
        if teacher.colocate:
            teacher.nnodes, teacher.n_gpus_per_node = config.trainer.nnodes, config.trainer.n_gpus_per_node
    return opd


def import_plugins(opd: OpdConfig) -> None:
    """Imports the user's modules named in `opd.plugins`."""
    import_modules("opd.plugins", opd.plugins)


def import_modules(key: str, modules: Sequence[str]) -> None:
    """Imports the user's modules, which register their hooks. Raises ConfigError under `key` for a missing module."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(key, module, str(error), "put the module on PYTHONPATH") from error
