"""What every stage will do, worked out and checked before the first of them starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from opd_verl.checks.batch import check_data
from opd_verl.checks.models import load_config, load_tokenizer, require_folder
from opd_verl.checks.off_policy import check_column
from opd_verl.checks.preflight import preflight
from opd_verl.config.compose import PPO, SFT, compose_trainer
from opd_verl.config.errors import ConfigError
from opd_verl.pipeline.commands import Inputs, is_sft, settings
from opd_verl.pipeline.config import PipelineConfig, StageConfig, root
from opd_verl.pipeline.fingerprint import file_identity, model_identity, stage_fingerprint
from opd_verl.pipeline.folders import StageFolder
from opd_verl.pipeline.rollouts import RolloutsPlan, plan_rollouts

STAND_INS = {
    "actor_rollout_ref.model.path": "<student>",
    "model.path": "<student>",
    "opd.teacher.path": "<teacher>",
    "data.train_files": "<train>",
    "data.val_files": "<val>",
}
"""Keys whose value is a place; what lies there has an identity of its own."""


@dataclass(frozen=True)
class StagePlan:
    """One stage, ready to run once the stages before it have."""

    name: str
    stage: StageConfig
    distils: bool
    """Whether a teacher's scores are what it learns from."""
    fingerprint: str
    folder: StageFolder
    rollouts: RolloutsPlan | None
    """The teacher's responses that it trains on; None: its prompts are the data's."""
    processes: int
    """Of the SFT trainer on this node."""


def plan(config: PipelineConfig) -> list[StagePlan]:
    """Composes and checks all stages.

    Raises:
        ConfigError: a stage cannot work.
        SystemExit: Hydra refuses a stage's recipe or overrides.
    """
    plans: dict[str, StagePlan] = {}
    for name, stage in config.stages.items():
        plans[name] = plan_stage(config, name, stage, {before: one.fingerprint for before, one in plans.items()})
    return list(plans.values())


def plan_stage(config: PipelineConfig, name: str, stage: StageConfig, earlier: Mapping[str, str]) -> StagePlan:
    """One stage; `earlier`: fingerprints of the stages before it, by name."""
    trainer, train = SFT if is_sft(stage.recipe) else PPO, stage.train or config.data.train
    distils = trainer == PPO and has_opd(stage.recipe)
    check_roles(name, stage, distils)
    for role, model in roles(stage).items():
        require_folder(f"stages.{name}.{role}", root(config, model))
    teacher = None if stage.teacher is None else root(config, stage.teacher)
    inputs = Inputs(root(config, stage.student), teacher if distils else None, train, config.data.val)
    composed = compose_trainer(settings(config, stage, inputs, distils), trainer)
    identity = {role: identity_of(value, earlier) for role, value in roles(stage).items()} | {"train": train_of(train)}
    rollouts = None
    if trainer == SFT or (distils and composed.opd.off_policy.share):
        rollouts = plan_rollouts(config, stage, composed, train, identity)
        identity["train"] = rollouts.identity
    check_stage(composed, inputs, distils, rollouts is not None)
    fingerprint = stage_fingerprint(with_stand_ins(composed), identity)
    folder = StageFolder(Path(config.out).absolute() / "stages" / f"{name}-{fingerprint}", stage.recipe)
    processes = int(composed.trainer.n_gpus_per_node)
    return StagePlan(name, stage, distils, fingerprint, folder, rollouts, processes)


@cache
def has_opd(recipe: str) -> bool:
    """Whether a recipe of main_ppo has an `opd:` section."""
    return "opd" in compose_trainer([f"recipe={recipe}"])


def roles(stage: StageConfig) -> dict[str, str]:
    """The models of a stage."""
    return {"student": stage.student} | ({} if stage.teacher is None else {"teacher": stage.teacher})


def identity_of(model: str, earlier: Mapping[str, str]) -> object:
    """A stage's fingerprint, or what identifies a model."""
    return earlier[model] if model in earlier else model_identity(model)


def train_of(file: str) -> str:
    """The identity of the training prompts.

    Raises:
        ConfigError: they are not there.
    """
    if not Path(file).expanduser().is_file():
        raise ConfigError("data.train", file, "no such file", "data.train=/path/to/prompts.parquet")
    return file_identity(file)


def check_roles(name: str, stage: StageConfig, distils: bool) -> None:
    """A teacher where one is read, and only there."""
    key = f"stages.{name}.teacher"
    reads = distils or is_sft(stage.recipe)
    if stage.teacher is not None and not reads:
        raise ConfigError(key, stage.teacher, f"recipe={stage.recipe} reads no teacher", f"~{key}, or recipe=opd")
    if stage.teacher is None and is_sft(stage.recipe):
        problem = f"recipe={stage.recipe} trains on a teacher's responses"
        raise ConfigError(key, None, problem, f"{key}=an earlier stage, or a model")


def check_stage(composed: DictConfig, inputs: Inputs, distils: bool, responses_come: bool) -> None:
    """The recipe's own checks, on the models that the stage's models begin as."""
    if distils:
        preflight(composed, skip=(check_column,) if responses_come else ())
        return
    load_config("student", inputs.student, False)
    load_tokenizer("student", inputs.student, False)
    if "actor_rollout_ref" in composed:
        check_data(composed)


def with_stand_ins(composed: DictConfig) -> DictConfig:
    """A copy in which the places are named by their role."""
    found = composed.copy()
    OmegaConf.set_struct(found, False)
    for key, stand_in in STAND_INS.items():
        if OmegaConf.select(found, key, throw_on_missing=False) is not None:
            OmegaConf.update(found, key, stand_in)
    return found
