"""The teacher's responses for the stages that train on them, made once for all stages that want the same."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from opd_verl.checks.template import template_options
from opd_verl.pipeline.commands import is_sft
from opd_verl.pipeline.config import PipelineConfig, StageConfig
from opd_verl.pipeline.fingerprint import LENGTH
from opd_verl.pipeline.training_child import die_with_parent
from opd_verl.utils.files import json_digest


@dataclass(frozen=True)
class RolloutsPlan:
    """One file of responses."""

    fingerprint: str
    file: Path
    """As `python -m opd_verl.data rollouts` writes it."""
    messages: Path | None
    """As verl's SFT trainer reads it, made of `file`; None: main_ppo reads `file` itself."""
    options: tuple[str, ...]
    """Of the command, without model and output."""
    only_correct: bool

    @property
    def identity(self) -> str:
        """What identifies the file that the stage trains on."""
        return f"{self.fingerprint}/{self.train_file.name}"

    @property
    def train_file(self) -> Path:
        """What the stage trains on."""
        return self.file if self.messages is None else self.messages


def plan_rollouts(
    config: PipelineConfig, stage: StageConfig, composed: DictConfig, train: str, identity: Mapping[str, Any]
) -> RolloutsPlan:
    """The responses that this stage needs."""
    wanted, sft = config.rollouts, is_sft(stage.recipe)
    limit = wanted.max_tokens or int(composed.data.max_length if sft else composed.data.max_response_length)
    render = template_options(composed)
    options = {"n": wanted.n, "temperature": wanted.temperature, "top-p": wanted.top_p, "max-tokens": limit}
    options |= {"seed": config.seed, **({"limit": wanted.limit} if wanted.limit else {})}
    options |= {"chat-template-kwargs": json.dumps(render)} if render else {}
    content = {"options": options, "teacher": identity.get("teacher"), "train": identity["train"]}
    fingerprint = json_digest(content)[:LENGTH]
    folder = Path(config.out).absolute() / "rollouts" / fingerprint
    arguments = [train, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    messages = folder / f"sft{'-correct' * wanted.only_correct}.parquet" if sft else None
    return RolloutsPlan(fingerprint, folder / "rollouts.parquet", messages, tuple(arguments), wanted.only_correct)


def make_rollouts(plan: RolloutsPlan, teacher: str) -> None:
    """Samples what is not there yet; after a kill it goes on where it was.

    Raises:
        SystemExit: a command failed; it has said why.
    """
    data = [sys.executable, "-m", "opd_verl.data"]
    if not plan.file.exists():
        run([*data, "rollouts", *plan.options, "--model", teacher, "--out", str(plan.file)])
    if plan.messages is not None and not plan.messages.exists():
        only_correct = ["--only-correct"] if plan.only_correct else []
        run([*data, "sft", str(plan.file), "--out", str(plan.messages), "--only-finished", *only_correct])


def run(command: list[str]) -> None:
    """A command of ours, on this terminal."""
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    done = subprocess.run(command, preexec_fn=die_with_parent)
    if done.returncode:
        raise SystemExit(f"it stopped with code {done.returncode}; the same pipeline command goes on from there")
