"""Everything that an alignment reads, opened and checked before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.tree.enrich import say
from opd_verl.checks.models import load_config
from opd_verl.checks.scorable import ScoringPair, SettingNames, scoring_checks
from opd_verl.checks.template import template_difference
from opd_verl.config.errors import ConfigError
from opd_verl.config.overrides import strings
from opd_verl.sampling.judging import load_reward
from opd_verl.sampling.model_names import named
from opd_verl.sampling.prompts import Model, open_model
from opd_verl.sampling.rollouts import SamplingJob, prepare_job
from opd_verl.sampling.rows import read_rows

NAMES = SettingNames(
    teacher="teachers",
    longest="the longest prompt + max_tokens",
    shorten="max_tokens",
    template_options="chat_template_kwargs",
)
"""Names of these settings in `hydra_configs/alignment/alignment.yaml`, for messages."""


@dataclass(frozen=True)
class PreparedAlignment:
    """The models and the prompts."""

    student: Model
    teachers: dict[str, Model]
    """External teachers by name; a self-distilling teacher is the student."""
    rows: pa.Table
    """The prompts file's rows."""
    job: SamplingJob
    """The initial rollouts."""


def prepare_alignment(config: AlignmentConfig) -> PreparedAlignment:
    """Opens the models and encodes every prompt. Raises ConfigError for an unusable model, file or setting."""
    config.check()
    load_reward(config.reward)
    student = open_model("student", str(config.student), config.engine.trust_remote_code)
    paths = named("teachers", config.teachers) if config.teachers else {}
    teachers = {name: open_model("teachers", path, config.engine.trust_remote_code) for name, path in paths.items()}
    check_names(teachers, config)
    rows = read_rows("prompts", [Path(name) for name in strings(config.prompts)], config.limit)
    out = Path(config.out) / "rollouts" / "initial.parquet"
    job = prepare_job(student, rows, config.sampling, out, str(config.prompts))
    for model in teachers.values():
        check_teacher(student, model, job.longest_prompt + config.max_tokens, config)
    return PreparedAlignment(student, teachers, rows, job)


def check_names(teachers: dict[str, Model], config: AlignmentConfig) -> None:
    """Raises ConfigError for an external teacher with the student's or a context's name."""
    for name, model in teachers.items():
        if name == "student" or name in config.contexts.names:
            problem = "the student or a context already has this name"
            raise ConfigError("teachers", name, problem, f"teachers={{big: {model.path}}}")


def check_teacher(student: Model, teacher: Model, longest: int, config: AlignmentConfig) -> None:
    """Raises ConfigError for a teacher that cannot score this student's tokens."""
    path, options = teacher.path, config.chat_template_kwargs
    text_config = load_config(NAMES.teacher, path, config.engine.trust_remote_code)
    pair = ScoringPair(student.tokenizer, teacher.tokenizer, path, path, text_config, longest, options)
    checks = scoring_checks(pair, NAMES)
    if parts := template_difference(pair.student, pair.teacher, options):
        # A different template is only reported: every model reads the prompts that the student's template made.
        checks["chat template"] = lambda: f"prompts that read {parts}"
    for check in checks.values():
        if remark := check():
            say(f"teachers={path}: {remark}")
