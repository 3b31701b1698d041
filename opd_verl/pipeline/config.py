"""The pipeline's typed config, and the checks of its stages that need no model."""

from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError


@dataclass
class ModelsConfig:
    """The starting models: folders or hub names."""

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
    """Number of prompts, from the first; None: all."""
    only_correct: bool = False
    """Whether cold_start trains on correct responses alone."""


@dataclass
class ComparisonConfig:
    """The evaluation behind the table across stages."""

    benchmarks: list[str] = field(default_factory=list)
    """Parquet files; empty: `data.val`."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of `python -m opd_verl.eval`: preset=eopd, n=8, max_tokens=..."""
    enabled: bool = True
    """Whether the pipeline ends with the evaluation."""


@dataclass
class StageConfig:
    """One training."""

    recipe: str = MISSING
    """A recipe of main_ppo, or cold_start (verl's SFT trainer)."""
    student: str = MISSING
    """Starting weights: an earlier stage, or a folder or hub name."""
    teacher: str | None = None
    """The teacher: an earlier stage, or a folder or hub name; None: the recipe has none."""
    train: str | None = None
    """Training prompts; None: `data.train`."""
    steps: int | None = None
    """Training steps; None: all steps of the recipe's epochs."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of verl's trainer, after the pipeline's own."""


@dataclass
class PipelineConfig:
    """The whole config; `hydra_configs/pipelines/pipeline.yaml` holds its defaults."""

    models: ModelsConfig = field(default_factory=ModelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """The trainings by name, in this order."""
    out: str = "runs/pipeline"
    """Folder of all files."""
    cluster: str | None = None
    """`cluster=` of every stage: `local_cpu` on a machine without accelerators."""
    seed: int = 0
    """Seed of the data's order, the rollouts and the evaluation."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template in every stage, the teacher's rollouts and the evaluation."""
    deterministic: bool = False
    """Whether teachers score in fixed batches after the rollout (`opd.teacher.early=false`), not beside it. Slower; a
    killed pipeline then ends with the same weights to the byte, if the machine's arithmetic is reproducible."""
    save_freq: int = 10
    """Steps between checkpoints: a kill costs at most so many steps."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of every stage of main_ppo."""
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    eval: ComparisonConfig = field(default_factory=ComparisonConfig)


def schema() -> DictConfig:
    """Returns the schema that Hydra checks the command line against.

    `stages` is an open mapping, so that the command line may add and change stages; `parse_pipeline` checks them.
    """
    typed = cast(DictConfig, OmegaConf.structured(PipelineConfig))
    stages = OmegaConf.create({})
    OmegaConf.set_struct(stages, False)
    return OmegaConf.create({key: stages if key == "stages" else typed._get_node(key) for key in typed})


def parse_pipeline(config: DictConfig) -> PipelineConfig:
    """Returns the typed config.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value, or stages that do not fit together.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PipelineConfig), config)
        pipeline = cast(PipelineConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "", str(error.msg).splitlines()[0]
        value = OmegaConf.select(config, key, throw_on_missing=False) if key else None
        raise ConfigError(key, value, problem, "hydra_configs/pipelines/pipeline.yaml shows every key") from error
    if not pipeline.stages:
        raise ConfigError("stages", {}, "no stage is given", "pipeline=grpo_then_opd")
    check_names(pipeline)
    return pipeline


def check_names(config: PipelineConfig) -> None:
    """Checks that stages read only earlier stages, and that their names can be folder names.

    Raises:
        ConfigError: a name or an order cannot work; the message names stage and remedy.
    """
    names = list(config.stages)
    for place, (name, stage) in enumerate(config.stages.items()):
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError("stages", name, "a stage's name becomes a folder name", "letters, digits, - and _")
        for role in ("student", "teacher"):
            value = getattr(stage, role)
            if value in names[place:]:
                problem = f"stage {value} does not come before stage {name}"
                remedy = f"a model, or one of {', '.join(names[:place]) or 'no stage'}"
                raise ConfigError(f"stages.{name}.{role}", value, problem, remedy)
        if stage.steps is not None and stage.steps < 1:
            raise ConfigError(f"stages.{name}.steps", stage.steps, "must be positive", "1 or more, or drop the key")


def root(config: PipelineConfig, model: str) -> str:
    """Follows the stages back to the starting model, which exists before any stage runs and has the same tokenizer."""
    while model in config.stages:
        model = config.stages[model].student
    return model
