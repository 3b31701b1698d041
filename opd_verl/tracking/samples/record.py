"""A rollout to show, and its JSON: a training writes it beside its pages, the probe in its results."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opd_verl.utils.files import finite

DIGITS = 6
"""Digits behind the decimal point of every number in the JSON."""


@dataclass(frozen=True)
class Token:
    """A token of a response; log-probs, reward and entropies in nats."""

    id: int
    text: str
    log_p: float
    log_q: float
    reward: float
    trained: bool
    """False: the token is masked and has no part in the loss."""
    student_entropy: float | None = None
    teacher_entropy: float | None = None
    quadrant: int | None = None
    """1 to 4 (`opd_verl.metrics.quadrants.quadrant`); 0: r_t is exactly 0."""
    top: Sequence[tuple[str, float]] | None = None
    """The teacher's most likely tokens and their log q, the most likely first."""


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout to show."""

    name: str
    why: str
    prompt: str
    tokens: Sequence[Token]
    mean_reward: float
    score: float
    correct: bool | None
    teacher: str | None = None


def to_json(sample: RolloutRecord) -> dict[str, object]:
    """The record as plain values; NaN is null."""
    return finite(asdict(sample), DIGITS)


def from_json(content: dict[str, Any]) -> RolloutRecord:
    """Reads back a record of `to_json`; null numbers are NaN. Raises KeyError if a field is missing."""
    return RolloutRecord(
        name=content["name"],
        why=content["why"],
        prompt=content["prompt"],
        tokens=[_token(token) for token in content["tokens"]],
        mean_reward=_number(content["mean_reward"]),
        score=_number(content["score"]),
        correct=content["correct"],
        teacher=content.get("teacher"),
    )


def _token(content: dict[str, Any]) -> Token:
    log_p, log_q, reward = (_number(content[name]) for name in ("log_p", "log_q", "reward"))
    known = {name: content.get(name) for name in ("student_entropy", "teacher_entropy", "quadrant")}
    top = content.get("top")
    pairs = None if top is None else [(text, log_q) for text, log_q in top]
    return Token(content["id"], content["text"], log_p, log_q, reward, content["trained"], **known, top=pairs)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
