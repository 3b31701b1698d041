"""Samples the teacher's responses for stages that train on them, once for all stages with the same needs."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from opd_verl.checks.template import template_options
from opd_verl.pipeline.commands import is_sft
from opd_verl.pipeline.config import PipelineConfig, StageConfig
from opd_verl.pipeline.fingerprint import LENGTH
from opd_verl.pipeline.training_child import die_with_parent
from opd_verl.utils.files import json_digest


@dataclass(frozen=True)
class TeacherResponses:
    """One file of the teacher's responses, sampled or still to be sampled."""

    fingerprint: str
    file: Path
    """The file that `python -m opd_verl.data rollouts` writes."""
    messages: Path | None
    """The file for verl's SFT trainer, made from `file`; None: main_ppo reads `file` itself."""
    options: tuple[str, ...]
    """Arguments of the command, without model and output."""
    only_correct: bool

    @property
    def identity(self) -> str:
        """Identity of the file that the stage trains on."""
        return f"{self.fingerprint}/{self.train_file.name}"

    @property
    def train_file(self) -> Path:
        """The file that the stage trains on."""
        return self.file if self.messages is None else self.messages


def needed_responses(
    config: PipelineConfig, stage: StageConfig, composed: DictConfig, train: str, identity: Mapping[str, object]
) -> TeacherResponses:
    """Returns the responses that this stage needs; `identity` identifies teacher and training prompts."""
    sampling, sft = config.rollouts, is_sft(stage.recipe)
    limit = sampling.max_tokens or int(composed.data.max_length if sft else composed.data.max_response_length)
    render = template_options(composed)
    options = {"n": sampling.n, "temperature": sampling.temperature, "top-p": sampling.top_p, "max-tokens": limit}
    options |= {"seed": config.seed, **({"limit": sampling.limit} if sampling.limit else {})}
    options |= {"chat-template-kwargs": json.dumps(render)} if render else {}
    content = {"options": options, "teacher": identity.get("teacher"), "train": identity["train"]}
    fingerprint = json_digest(content)[:LENGTH]
    folder = Path(config.out).absolute() / "rollouts" / fingerprint
    arguments = [train, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    messages = folder / f"sft{'-correct' * sampling.only_correct}.parquet" if sft else None
    return TeacherResponses(fingerprint, folder / "rollouts.parquet", messages, tuple(arguments), sampling.only_correct)


def sample_responses(responses: TeacherResponses, teacher: str) -> None:
    """Samples responses that are missing; after a kill it continues with the next shard.

    Raises:
        SystemExit: a command failed and printed the reason.
    """
    data = [sys.executable, "-m", "opd_verl.data"]
    if not responses.file.exists():
        run([*data, "rollouts", *responses.options, "--model", teacher, "--out", str(responses.file)])
    if responses.messages is not None and not responses.messages.exists():
        only_correct = ["--only-correct"] if responses.only_correct else []
        run([*data, "sft", str(responses.file), "--out", str(responses.messages), "--only-finished", *only_correct])


def run(command: list[str]) -> None:
    """Runs a command of this package on this terminal; it ends when this process ends."""
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    done = subprocess.run(command, preexec_fn=die_with_parent)
    if done.returncode:
        raise SystemExit(f"sampling stopped with code {done.returncode}; the same pipeline command resumes there")
