"""Rows in verl's format: `prompt` (messages), `reward_model.ground_truth`, `extra_info`; and what makes one bad."""

from collections.abc import Mapping, Sequence
from typing import Any

from opd_verl.data.templates import fill, strip

Row = dict[str, Any]
Message = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be used: `reason` is the kind that is counted, `detail` what is wrong with this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def column(row: Mapping[str, Any], name: str) -> Any:
    """A value of the row. Raises BadRow if there is no such column."""
    if name not in row:
        raise BadRow("missing column", f"there is no {name!r}, only {', '.join(row)}")
    return row[name]


def question_text(value: Any) -> str:
    """A question that is there. Raises BadRow if it is empty or no text."""
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong type", f"the question is of type {type(value).__name__}, not text")
    if value is None or not value.strip():
        raise BadRow("empty question", "there is no text but the template")
    return value


def answer_text(value: Any) -> str:
    """An answer as text, whole numbers without a decimal point. Raises BadRow if it is empty or neither of these."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BadRow("wrong type", f"the answer is of type {type(value).__name__}, not text or a number")
    if value is None or value != value or not str(value).strip():  # a number that is missing is not equal to itself
        raise BadRow("no answer", f"the answer is {value!r}")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def is_verl(row: Mapping[str, Any]) -> bool:
    """Whether the row has the columns of verl's format."""
    return "prompt" in row and "reward_model" in row


def last_user(messages: Any) -> int:
    """The place of the last user message. Raises BadRow where there is none, or its content is not text."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong type", "prompt is not a list of messages")
    places = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    if not places or not isinstance(messages[places[-1]].get("content"), str):
        raise BadRow("wrong type", "prompt has no user message that is text")
    return places[-1]


def info(row: Mapping[str, Any]) -> Row:
    """The row's `extra_info`, empty if there is none. Raises BadRow if it is not a mapping."""
    found = row.get("extra_info")
    if found is not None and not isinstance(found, dict):
        raise BadRow("wrong type", f"extra_info is of type {type(found).__name__}")
    return found or {}


def bare_question(row: Mapping[str, Any], *templates: str) -> str:
    """The question in the last user message, without `templates`, the one in `extra_info.template`, and known ones."""
    messages = column(row, "prompt")
    return strip(messages[last_user(messages)]["content"], *templates, info(row).get("template"))


def with_question(messages: Sequence[Message], text: str) -> list[Row]:
    """The conversation with `text` as its last user message."""
    changed = [dict(message) for message in messages]
    changed[last_user(changed)]["content"] = text
    return changed


def templated(row: Mapping[str, Any], question: str, template: str) -> Row:
    """The row with the question under another template, both of which `extra_info` then holds."""
    prompt = with_question(row["prompt"], fill(template, question))
    return {**row, "prompt": prompt, "extra_info": {**info(row), "question": question, "template": template}}
