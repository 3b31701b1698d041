"""A stage as a command line. Everything that decides its result is in `settings`; where it writes, in `outputs`."""

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
"""Recipes of verl's SFT trainer; all others are main_ppo's."""
ROLLOUT = "actor_rollout_ref.rollout"
SEEDED = (
    "trainer.v1.trainer_mode=seeded",
    f"++{ROLLOUT}.agent.agent_loop_manager_class=opd_verl.seeded_loop.SeededAgentLoopManager",
)
"""recipe=grpo with a seed for every rollout, so that a stage that was killed ends with the same numbers."""
CONTENTS = "save_contents=[model,optimizer,extra,hf_model]"
KEPT_CHECKPOINTS = 2
"""While the newest is written, the one before it must still be there."""


@dataclass(frozen=True)
class Inputs:
    """What a stage reads: models and files, as paths or as whatever stands for them."""

    student: str
    teacher: str | None
    train: str
    val: str


def is_sft(recipe: str) -> bool:
    """Whether verl's SFT trainer runs it."""
    return recipe in SFT_RECIPES


def settings(
    config: PipelineConfig, stage: StageConfig, inputs: Inputs, distils: bool, where: Sequence[str] = ()
) -> list[str]:
    """Overrides that decide what a stage computes; the user's come last.

    Args:
        distils: whether the recipe has an `opd:` section.
        where: `outputs`, which decide nothing; before the user's overrides, so that these win.
    """
    common = [f"recipe={stage.recipe}", *([f"cluster={config.cluster}"] if config.cluster else []), *where]
    render = [f"++{OPTIONS}.{name}={json.dumps(value)}" for name, value in config.chat_template_kwargs.items()]
    length = [f"trainer.total_training_steps={stage.steps}", "trainer.total_epochs=1000000"] if stage.steps else []
    if is_sft(stage.recipe):
        return [*common, *sft_inputs(config, inputs), *render, *length, *stage.overrides]
    seeded = (
        ["opd.seed_rollouts=true", f"opd.teacher.early={str(not config.deterministic).lower()}"] if distils else SEEDED
    )
    own = [*ppo_inputs(config, inputs), *render, *seeded, *length]
    return [*common, *own, *config.overrides, *stage.overrides]


def sft_inputs(config: PipelineConfig, inputs: Inputs) -> list[str]:
    """Model, data and seeds of `verl.trainer.sft_trainer`."""
    return [
        f"model.path={hydra_value(inputs.student)}",
        f"data.train_files={hydra_value(inputs.train)}",
        f"trainer.seed={config.seed}",
        f"engine.seed={config.seed}",
    ]


def ppo_inputs(config: PipelineConfig, inputs: Inputs) -> list[str]:
    """Models, data and seeds of `verl.trainer.main_ppo`."""
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
    """Overrides that say where a stage writes, and that it goes on where it was stopped."""
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
    """The whole command line; verl's SFT trainer wants torchrun where it has several processes."""
    python = [sys.executable, "-m"]
    if not is_sft(recipe):
        return [*python, "verl.trainer.main_ppo", *overrides]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return [*python, *launcher, "verl.trainer.sft_trainer", *overrides]


def environment(recipe: str) -> dict[str, str]:
    """What a single process of the SFT trainer must find in its environment; torchrun would set it."""
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
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
