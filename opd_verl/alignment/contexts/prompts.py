"""Prompts of a self-distilling teacher: its context, then the question, in token ids of the student's tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from opd_verl.contexts import CONTEXT_HOOKS, with_context
from opd_verl.data.files import take
from opd_verl.data.rows import info
from opd_verl.sampling.prompts import Model, check_lengths, encode
from opd_verl.sampling.settings import SamplingSettings


def messages_with(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The row's conversation with the context before the last user message. Raises ValueError if a text is lacking."""
    sample = {"index": info(row).get("index"), **row}
    return with_context(row["prompt"], CONTEXT_HOOKS[name](sample))


def lacks(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has too few texts for the context."""
    try:
        messages_with(row, name)
    except ValueError:
        return True
    return False


def teacher_prompt_ids(student: Model, row: Mapping[str, Any], name: str, settings: SamplingSettings) -> list[int]:
    """Token ids of the teacher's prompt, made with the student's chat template and suffix, like the student's prompt.

    Args:
        row: a row of `PreparedContexts.rows`, as a dictionary.
        name: name of the context.

    Raises:
        ValueError: the row lacks a text that the context shows.
    """
    return encode(student.tokenizer, messages_with(row, name), settings)


def check_prompts(
    student: Model, rows: pa.Table, usable: Sequence[int], names: Sequence[str], settings: SamplingSettings
) -> None:
    """Raises ConfigError, with the context and the row, if a prompt and its response exceed the model's length."""
    # max_prompt_tokens limits the student's own prompts; a teacher's prompt is limited by the model's length alone.
    open_ended = replace(settings, max_prompt_tokens=None)
    for name in names:
        ids: list[list[int]] = [[] for _ in range(len(rows))]
        for place, row in zip(usable, take(rows, usable).to_pylist(), strict=True):
            ids[place] = teacher_prompt_ids(student, row, name, open_ended)
        check_lengths(student, ids, open_ended, f"the prompts, with the context {name},")
