"""The pipeline's own config, typed, and what can be said of its stages without looking at a model."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError


@dataclass
class ModelsConfig:
    """What the pipeline starts from: folders or hub names."""

    student: str = MISSING
    teacher: str = MISSING


@dataclass
class DataConfig:
    """Parquet files in verl's format."""

    train: str = MISSING
    val: str = MISSING


@dataclass
class RolloutsConfig:
    """The teacher's responses for stages that do not sample from the student (cold_start, kd, gkd)."""

    n: int = 1
    """Responses per prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    """Longest response; None: the stage's own limit."""
    limit: int | None = None
    """Only the first so many prompts."""
    only_correct: bool = False
    """cold_start: keeps correct responses alone."""


@dataclass
class EvalConfig:
    """The table across stages."""

    benchmarks: list[str] = field(default_factory=list)
    """Parquet files; empty: `data.val`. Without any model to compare set `enabled: false`."""
    overrides: list[str] = field(default_factory=list)
    """Of `python -m opd_verl.eval`: preset=eopd, n=8, max_tokens=..."""
    enabled: bool = True


@dataclass
class StageConfig:
    """One training."""

    recipe: str = MISSING
    """Of `python -m verl.trainer.main_ppo recipe=...`, or cold_start."""
    student: str = MISSING
    """The model that is trained: an earlier stage, or a folder or hub name."""
    teacher: str | None = None
    """The model that it learns from: an earlier stage, or a folder or hub name."""
    train: str | None = None
    """Training prompts; None: `data.train`."""
    steps: int | None = None
    """Training steps; None: what the recipe's epochs give."""
    overrides: list[str] = field(default_factory=list)
    """Of verl's trainer; they come after the pipeline's own."""


@dataclass
class PipelineConfig:
    """`hydra_configs/pipelines/pipeline.yaml`."""

    models: ModelsConfig = field(default_factory=ModelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """In this order."""
    out: str = "runs/pipeline"
    cluster: str | None = None
    """Of every stage: `local_cpu` on a machine without accelerators."""
    seed: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """verl's `data.apply_chat_template_kwargs` of every stage, its rollouts and the evaluation."""
    deterministic: bool = False
    """Teachers score when the trainer asks and not before (`opd.teacher.early=false`): slower, and a stage that was
    killed ends with the same numbers to the last digit where the machine's arithmetic allows it."""
    save_freq: int = 10
    """Steps between checkpoints: what a kill can cost."""
    overrides: list[str] = field(default_factory=list)
    """Of verl's trainer in every stage of main_ppo."""
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def schema() -> DictConfig:
    """What Hydra checks the command line against. Stages may be added and changed: `parse_pipeline` checks them."""
    typed: Any = OmegaConf.structured(PipelineConfig)
    stages = OmegaConf.create({})
    OmegaConf.set_struct(stages, False)
    return OmegaConf.create({key: stages if key == "stages" else typed._get_node(key) for key in typed})


def parse_pipeline(config: DictConfig) -> PipelineConfig:
    """The typed config.

    Raises:
        ConfigError: an unknown key, a wrong type, something missing, or stages that do not fit together.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PipelineConfig), config)
        found: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "", str(error.msg).splitlines()[0]
        value = OmegaConf.select(config, key, throw_on_missing=False) if key else None
        raise ConfigError(key, value, problem, "hydra_configs/pipelines/pipeline.yaml shows every key") from error
    if not found.stages:
        raise ConfigError("stages", {}, "there is nothing to run", "pipeline=grpo_then_opd")
    check_names(found)
    return found


def check_names(config: PipelineConfig) -> None:
    """A stage reads earlier stages alone, and its name is a folder's.

    Raises:
        ConfigError: names the stage and the remedy.
    """
    names = list(config.stages)
    for place, (name, stage) in enumerate(config.stages.items()):
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError("stages", name, "a stage's name is a folder's", "letters, digits, - and _")
        for role in ("student", "teacher"):
            value = getattr(stage, role)
            if value in names[place:]:
                problem = f"stage {value} does not come before stage {name}"
                remedy = f"a model, or one of {', '.join(names[:place]) or 'no stage'}"
                raise ConfigError(f"stages.{name}.{role}", value, problem, remedy)
        if stage.steps is not None and stage.steps < 1:
            raise ConfigError(f"stages.{name}.steps", stage.steps, "must be positive", "drop it: the recipe's epochs")


def root(config: PipelineConfig, model: str) -> str:
    """The model that a stage's model began as: same architecture, same tokenizer, and there before anything runs."""
    while model in config.stages:
        model = config.stages[model].student
    return model
