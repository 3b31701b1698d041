"""Whether a teacher can score this student at all: vocabulary, end of a response, context, chat template."""

from collections.abc import Callable, Mapping
from typing import Any

from opd_verl.checks.models import check_context, check_same_tokenizer, check_vocabulary
from opd_verl.checks.template import check_template
from opd_verl.config.errors import ConfigError
from opd_verl.probe.record import CompatibilityCheck
from opd_verl.sampling.prompts import Model


def compatibility(
    student: Model, teacher: Model, config: Any, longest: int, options: Mapping[str, Any]
) -> list[CompatibilityCheck]:
    """Every check of a teacher.

    Args:
        config: the teacher's text config.
        longest: tokens of the longest prompt with its response.
        options: of the chat template.
    """
    own, others, path = student.tokenizer, teacher.tokenizer, teacher.path

    def template() -> str | None:
        return check_template("teacher", others, own, options, wanted=True)

    checks: dict[str, tuple[Callable[[], str | None], bool]] = {
        "tokenizer and end of a response": (lambda: check_same_tokenizer(own, others, "teacher", path), True),
        "vocabulary": (lambda: check_vocabulary("teacher", path, config, len(own)), True),
        "context": (lambda: check_context("teacher", path, config, longest), True),
        "chat template": (template, False),
    }
    return [finding(what, check, fatal) for what, (check, fatal) in checks.items()]


def finding(what: str, check: Callable[[], str | None], fatal: bool) -> CompatibilityCheck:
    """A check's outcome."""
    try:
        said = check()
    except ConfigError as error:
        return CompatibilityCheck(what, False, f"{error.problem.partition(': ')[2]}. Remedy: {error.remedy}", fatal)
    return CompatibilityCheck(what, True, said or "as the student's")
