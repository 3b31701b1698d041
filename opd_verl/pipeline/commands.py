"""Turns a stage into a command line: `settings` decide its result, `outputs` name its files."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_verl.checks.template import OPTIONS
from opd_verl.config.overrides import hydra_value
from opd_verl.pipeline.config import PipelineConfig, StageConfig

SFT_RECIPES = ("cold_start",)
"""Recipes of verl's SFT trainer; all others belong to main_ppo."""
ROLLOUT = "actor_rollout_ref.rollout"
SEEDED = (
    "trainer.v1.trainer_mode=seeded",
    f"++{ROLLOUT}.agent.agent_loop_manager_class=opd_verl.seeded_loop.SeededAgentLoopManager",
)
"""Gives every rollout of recipe=grpo its own seed, so that a killed stage ends with the same numbers."""
CONTENTS = "save_contents=[model,optimizer,extra,hf_model]"
KEPT_CHECKPOINTS = 2
"""With 1, verl deletes the old checkpoint before it names the new one: a kill in between would leave none."""


@dataclass(frozen=True)
class StageInputs:
    """Models and files that a stage reads, as paths or hub names."""

    student: str
    teacher: str | None
    train: str
    val: str


def is_sft(recipe: str) -> bool:
    """Says whether verl's SFT trainer runs this recipe."""
    return recipe in SFT_RECIPES


def settings(
    config: PipelineConfig, stage: StageConfig, inputs: StageInputs, distils: bool, where: Sequence[str] = ()
) -> list[str]:
    """Returns the overrides that decide what a stage computes; the user's overrides come last and win.

    Args:
        distils: whether the recipe has an `opd:` section.
        where: the stage's `outputs`; they change no number, and the user's overrides win over them too.
    """
    common = [f"recipe={stage.recipe}", *([f"cluster={config.cluster}"] if config.cluster else []), *where]
    render = [f"++{OPTIONS}.{name}={json.dumps(value)}" for name, value in config.chat_template_kwargs.items()]
    # verl ends at its limit of steps or of epochs: if steps are given, the epochs must never end the stage.
    length = [f"trainer.total_training_steps={stage.steps}", "trainer.total_epochs=1000000"] if stage.steps else []
    if is_sft(stage.recipe):
        return [*common, *sft_inputs(config, inputs), *render, *length, *stage.overrides]
    seeded = (
        ["opd.seed_rollouts=true", f"opd.teacher.early={str(not config.deterministic).lower()}"] if distils else SEEDED
    )
    own = [*ppo_inputs(config, inputs), *render, *seeded, *length]
    return [*common, *own, *config.overrides, *stage.overrides]


def sft_inputs(config: PipelineConfig, inputs: StageInputs) -> list[str]:
    """Returns model, data and seeds as overrides of `verl.trainer.sft_trainer`."""
    return [
        f"model.path={hydra_value(inputs.student)}",
        f"data.train_files={hydra_value(inputs.train)}",
        f"trainer.seed={config.seed}",
        f"engine.seed={config.seed}",
    ]


def ppo_inputs(config: PipelineConfig, inputs: StageInputs) -> list[str]:
    """Returns models, data and seeds as overrides of `verl.trainer.main_ppo`."""
    teacher = [] if inputs.teacher is None else [f"opd.teacher.path={hydra_value(inputs.teacher)}"]
    return [
        f"actor_rollout_ref.model.path={hydra_value(inputs.student)}",
        *teacher,
        f"data.train_files={hydra_value(inputs.train)}",
        f"data.val_files={hydra_value(inputs.val)}",
        f"data.seed={config.seed}",
        f"{ROLLOUT}.seed={config.seed}",
        "trainer.val_before_train=false",
    ]


def outputs(config: PipelineConfig, name: str, recipe: str, folder: Path) -> list[str]:
    """Returns the overrides that name a stage's files and make it resume from its last checkpoint."""
    checkpoint, keep = "actor_rollout_ref.actor.checkpoint", "max_actor_ckpt_to_keep"
    if is_sft(recipe):
        checkpoint, keep = "checkpoint", "max_ckpt_to_keep"
    return [
        f"{checkpoint}.{CONTENTS}",
        f"trainer.{keep}={KEPT_CHECKPOINTS}",
        f"trainer.save_freq={config.save_freq}",
        "trainer.resume_mode=auto",
        f"trainer.default_local_dir={hydra_value(folder)}",
        f"trainer.experiment_name={name}",
        "trainer.logger=[console,file]",
        f"hydra.run.dir={hydra_value(folder.parent / 'hydra')}",
    ]


def command(recipe: str, overrides: Sequence[str], processes: int) -> list[str]:
    """Returns the whole command line; verl's SFT trainer needs torchrun for several processes."""
    python = [sys.executable, "-m"]
    if not is_sft(recipe):
        return [*python, "verl.trainer.main_ppo", *overrides]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return [*python, *launcher, "verl.trainer.sft_trainer", *overrides]


def environment(recipe: str) -> dict[str, str]:
    """Returns the variables that torchrun would set: one process of the SFT trainer runs without torchrun."""
    if not is_sft(recipe):
        return {}
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(free_port())),
    }


def free_port() -> int:
    """Returns a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
