"""Checks whether a teacher can score this student: vocabulary, end of a response, context, chat template."""

from collections.abc import Callable, Mapping

from transformers import PretrainedConfig

from opd_verl.checks.scorable import ScoringPair, SettingNames, scoring_checks
from opd_verl.config.errors import ConfigError
from opd_verl.probe.record import CompatibilityCheck
from opd_verl.sampling.prompts import Model

NAMES = SettingNames(
    teacher="teacher",
    longest="the longest prompt + max_tokens",
    shorten="max_tokens",
    template_options="chat_template_kwargs",
)
"""Names of these settings in `hydra_configs/probe/probe.yaml`, for messages."""


def compatibility(
    student: Model, teacher: Model, config: PretrainedConfig, longest: int, options: Mapping[str, object]
) -> list[CompatibilityCheck]:
    """Every check of a teacher. A teacher with another chat template is measured too.

    Args:
        config: the teacher's text config.
        longest: tokens of the longest prompt with its response.
        options: options of the chat template.
    """
    pair = ScoringPair(student.tokenizer, teacher.tokenizer, teacher.path, teacher.path, config, longest, options)
    checks = scoring_checks(pair, NAMES)
    return [outcome(what, check, fatal=what != "chat template") for what, check in checks.items()]


def outcome(what: str, check: Callable[[], str | None], fatal: bool) -> CompatibilityCheck:
    """A check's outcome; `fatal`: a problem here makes every measurement impossible."""
    try:
        remark = check()
    except ConfigError as error:
        return CompatibilityCheck(what, False, f"{error.problem.partition(': ')[2]}. Remedy: {error.remedy}", fatal)
    return CompatibilityCheck(what, True, remark or "as the student's")
