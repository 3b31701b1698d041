"""Reads and changes rows in verl's format: `prompt`, `reward_model.ground_truth`, `extra_info`. Raises BadRow."""

from collections.abc import Mapping, Sequence
from typing import Any

from opd_verl.data.templates import fill, strip

Row = dict[str, Any]
"""A row of a parquet or JSON file; its columns and their types depend on the file."""


class BadRow(ValueError):
    """A row that cannot be used: reports count rows by `reason`; `detail` describes the error in this row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def column(row: Mapping[str, object], name: str) -> object:
    """Returns a value of the row. Raises BadRow if there is no such column."""
    if name not in row:
        raise BadRow("missing column", f"there is no {name!r}, only {', '.join(row)}")
    return row[name]


def question_text(value: object) -> str:
    """Returns the question as it is. Raises BadRow if it is empty or not text."""
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong type", f"the question is of type {type(value).__name__}, not text")
    if value is None or not value.strip():
        raise BadRow("empty question", "there is no text but the template")
    return value


def answer_text(value: object) -> str:
    """Returns the answer as text, a whole number without decimal point. Raises BadRow if it is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BadRow("wrong type", f"the answer is of type {type(value).__name__}, not text or a number")
    if value is None or value != value or not str(value).strip():  # NaN, a missing number, is not equal to itself
        raise BadRow("no answer", f"the answer is {value!r}")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def is_verl(row: Mapping[str, object]) -> bool:
    """Says whether the row has the columns of verl's format."""
    return "prompt" in row and "reward_model" in row


def last_user(messages: object) -> int:
    """Returns the place of the last user message. Raises BadRow if there is none, or its content is not text."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong type", "prompt is not a list of messages")
    places = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    if not places or not isinstance(messages[places[-1]].get("content"), str):
        raise BadRow("wrong type", "prompt has no user message that is text")
    return places[-1]


def info(row: Mapping[str, object]) -> Row:
    """Returns the row's `extra_info`, empty if there is none. Raises BadRow if it is not a mapping."""
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, dict):
        raise BadRow("wrong type", f"extra_info is of type {type(extra).__name__}")
    return extra or {}


def bare_question(row: Mapping[str, Any], *templates: str) -> str:
    """Returns the last user message without `templates`, without `extra_info.template`, and without known templates."""
    place = last_user(column(row, "prompt"))
    return strip(row["prompt"][place]["content"], *templates, info(row).get("template"))


def with_question(messages: Sequence[Row], text: str) -> list[Row]:
    """Returns the conversation with `text` as its last user message."""
    changed = [dict(message) for message in messages]
    changed[last_user(changed)]["content"] = text
    return changed


def templated(row: Row, question: str, template: str) -> Row:
    """Returns the row with its question under another template; `extra_info` then holds question and template."""
    prompt = with_question(row["prompt"], fill(template, question))
    return {**row, "prompt": prompt, "extra_info": {**info(row), "question": question, "template": template}}
