"""Checks a whole probe before a model is loaded: models, prompts, and whether the teachers fit the student."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.checks.models import load_config
from opd_verl.config.errors import ConfigError
from opd_verl.config.overrides import strings
from opd_verl.probe.compatibility import compatibility
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.record import CompatibilityCheck
from opd_verl.sampling.judging import load_reward
from opd_verl.sampling.model_names import named
from opd_verl.sampling.prompts import Model, open_model
from opd_verl.sampling.rollouts import SamplingJob, prepare_job
from opd_verl.sampling.rows import read_rows

BEFORE, AFTER = "before", "after"
"""Names of the student before and after its training."""


@dataclass(frozen=True)
class PreparedProbe:
    """Models by name, and the prompts encoded for each."""

    students: dict[str, Model]
    """Student `before` its training and, if the config names it, `after`."""
    teachers: dict[str, Model]
    """The teachers that can score the student."""
    rows: pa.Table
    """The prompts' rows."""
    jobs: dict[str, SamplingJob]
    """Prompts and rollouts file of each student and teacher that answers."""
    per_prompt: int
    """Measured responses per prompt."""
    compatibility: dict[str, list[CompatibilityCheck]]
    """The checks of every teacher, including teachers that cannot score the student."""


def prepare_probe(config: ProbeConfig) -> PreparedProbe:
    """Opens the models and encodes every prompt. Raises ConfigError for an unusable model, file or setting."""
    config.check()
    load_reward(config.reward)
    students = open_students(config)
    opened = {name: open_key("teacher", path, config) for name, path in named("teacher", config.teacher).items()}
    check_names(opened)
    rows = read_rows("prompts", [Path(file) for file in strings(config.prompts)], config.rollouts)
    per_prompt = -(-config.rollouts // len(rows))
    if per_prompt > config.n:
        problem = f"{len(rows)} prompts with n={config.n} responses each give fewer rollouts"
        raise ConfigError("rollouts", config.rollouts, problem, f"n={per_prompt}, or rollouts={config.n * len(rows)}")
    jobs = {name: job_of(name, model, rows, config) for name, model in students.items()}
    longest = jobs[BEFORE].longest_prompt + config.max_tokens
    checked = {name: check_teacher(students[BEFORE], model, longest, config) for name, model in opened.items()}
    able = {name: opened[name] for name, checks in checked.items() if not any(check.fatal for check in checks)}
    jobs |= {name: job_of(name, model, rows, config) for name, model in able.items() if config.headroom}
    return PreparedProbe(students, able, rows, jobs, per_prompt, checked)


def open_students(config: ProbeConfig) -> dict[str, Model]:
    """The student and, if `after` names it, the student after its training."""
    paths = {BEFORE: ("student", config.student), AFTER: ("after", config.after)}
    return {name: open_key(key, path, config) for name, (key, path) in paths.items() if path is not None}


def open_key(key: str, path: str, config: ProbeConfig) -> Model:
    """Opens the model that a key names, without its weights."""
    return open_model(key, path, config.engine.trust_remote_code)


def check_names(teachers: dict[str, Model]) -> None:
    """Raises ConfigError for a teacher named as a student: both would write the same files."""
    for name in (BEFORE, AFTER):
        if name in teachers:
            remedy = f"teacher={{big: {teachers[name].path}}}"
            raise ConfigError("teacher", name, "a student already has this name", remedy)


def job_of(name: str, model: Model, rows: pa.Table, config: ProbeConfig) -> SamplingJob:
    """A model's prompts, and the file for its rollouts."""
    out = Path(config.out) / "rollouts" / f"{name}.parquet"
    return prepare_job(model, rows, config.sampling, out, str(config.prompts))


def check_teacher(student: Model, teacher: Model, longest: int, config: ProbeConfig) -> list[CompatibilityCheck]:
    """The checks of `compatibility` for one teacher; longest: tokens of the longest prompt with its response."""
    text_config = load_config("teacher", teacher.path, config.engine.trust_remote_code)
    return compatibility(student, teacher, text_config, longest, config.chat_template_kwargs)
