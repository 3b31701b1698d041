"""Contexts of a user, named by `opd.plugins=[hints]`."""

from collections.abc import Mapping
from typing import Any

from opd_verl.contexts import register_context


@register_context("nothing")
def nothing(sample: Mapping[str, Any]) -> str:
    """The teacher reads what the student reads."""
    return ""


@register_context("hint")
def hint(sample: Mapping[str, Any]) -> str:
    """The teacher reads the answer before the question."""
    return str(sample["reward_model"]["ground_truth"])
