"""Composes and checks all stages before the first one starts."""

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
from opd_verl.pipeline.commands import StageInputs, is_sft, settings
from opd_verl.pipeline.config import PipelineConfig, StageConfig, root
from opd_verl.pipeline.fingerprint import file_identity, model_identity, stage_fingerprint
from opd_verl.pipeline.folders import StageFolder
from opd_verl.pipeline.teacher_responses import TeacherResponses, needed_responses

STAND_INS = {
    "actor_rollout_ref.model.path": "<student>",
    "model.path": "<student>",
    "opd.teacher.path": "<teacher>",
    "data.train_files": "<train>",
    "data.val_files": "<val>",
}
"""Keys that hold a path. The fingerprint takes the content behind the path, so that a moved folder stays the same."""


@dataclass(frozen=True)
class PreparedStage:
    """A checked stage; it can run once the stages before it are finished."""

    name: str
    config: StageConfig
    distils: bool
    """Whether the recipe has an `opd:` section, so that a teacher scores."""
    fingerprint: str
    folder: StageFolder
    responses: TeacherResponses | None
    """The teacher's responses that the stage trains on; None: it trains on prompts alone."""
    processes: int
    """Processes of the SFT trainer on this node."""


def prepare_stages(config: PipelineConfig) -> list[PreparedStage]:
    """Composes and checks all stages.

    Raises:
        ConfigError: a stage cannot work.
        SystemExit: Hydra refuses a stage's recipe or overrides.
    """
    prepared: list[PreparedStage] = []
    for name, stage in config.stages.items():
        earlier = {before.name: before.fingerprint for before in prepared}
        prepared.append(prepare_stage(config, name, stage, earlier))
    return prepared


def prepare_stage(config: PipelineConfig, name: str, stage: StageConfig, earlier: Mapping[str, str]) -> PreparedStage:
    """Composes and checks one stage; `earlier`: fingerprints of the stages before it, by name."""
    trainer, train = SFT if is_sft(stage.recipe) else PPO, stage.train or config.data.train
    distils = trainer == PPO and has_opd(stage.recipe)
    check_roles(name, stage, distils)
    for role, model in roles(stage).items():
        require_folder(f"stages.{name}.{role}", root(config, model))
    teacher = None if stage.teacher is None else root(config, stage.teacher)
    # Later stages are checked on the starting models: trained models do not exist yet, and differ in weights alone.
    inputs = StageInputs(root(config, stage.student), teacher if distils else None, train, config.data.val)
    composed = compose_trainer(settings(config, stage, inputs, distils), trainer)
    identity = {role: identity_of(value, earlier) for role, value in roles(stage).items()} | {"train": train_of(train)}
    responses = None
    if trainer == SFT or (distils and composed.opd.off_policy.share):
        responses = needed_responses(config, stage, composed, train, identity)
        identity["train"] = responses.identity
    check_stage(composed, inputs, distils, responses is not None)
    fingerprint = stage_fingerprint(with_stand_ins(composed), identity)
    folder = StageFolder(Path(config.out).absolute() / "stages" / f"{name}-{fingerprint}", stage.recipe)
    processes = int(composed.trainer.n_gpus_per_node)
    return PreparedStage(name, stage, distils, fingerprint, folder, responses, processes)


@cache
def has_opd(recipe: str) -> bool:
    """Says whether a recipe of main_ppo has an `opd:` section."""
    return "opd" in compose_trainer([f"recipe={recipe}"])


def roles(stage: StageConfig) -> dict[str, str]:
    """Returns the models of a stage by role."""
    return {"student": stage.student} | ({} if stage.teacher is None else {"teacher": stage.teacher})


def identity_of(model: str, earlier: Mapping[str, str]) -> object:
    """Returns the fingerprint of an earlier stage, or the identity of a model."""
    return earlier[model] if model in earlier else model_identity(model)


def train_of(file: str) -> str:
    """Returns the identity of the training prompts.

    Raises:
        ConfigError: there is no such file.
    """
    if not Path(file).expanduser().is_file():
        raise ConfigError("data.train", file, "no such file", "data.train=/path/to/prompts.parquet")
    return file_identity(file)


def check_roles(name: str, stage: StageConfig, distils: bool) -> None:
    """Checks that a stage has a teacher if, and only if, its recipe reads a teacher."""
    key = f"stages.{name}.teacher"
    reads = distils or is_sft(stage.recipe)
    if stage.teacher is not None and not reads:
        raise ConfigError(key, stage.teacher, f"recipe={stage.recipe} reads no teacher", f"~{key}, or recipe=opd")
    if stage.teacher is None and is_sft(stage.recipe):
        problem = f"recipe={stage.recipe} trains on a teacher's responses"
        raise ConfigError(key, None, problem, f"{key}=an earlier stage, or a model")


def check_stage(composed: DictConfig, inputs: StageInputs, distils: bool, responses_come: bool) -> None:
    """Runs the recipe's own checks. `responses_come`: whether the data's column of responses is sampled later."""
    if distils:
        preflight(composed, skip=(check_column,) if responses_come else ())
        return
    load_config("student", inputs.student, False)
    load_tokenizer("student", inputs.student, False)
    if "actor_rollout_ref" in composed:
        check_data(composed)


def with_stand_ins(composed: DictConfig) -> DictConfig:
    """Returns a copy with stand-ins for all paths."""
    copied = composed.copy()
    OmegaConf.set_struct(copied, False)
    for key, stand_in in STAND_INS.items():
        if OmegaConf.select(copied, key, throw_on_missing=False) is not None:
            OmegaConf.update(copied, key, stand_in)
    return copied
