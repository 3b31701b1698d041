"""Demonstrations condensed by a model (Unmasking, E.9; the prompt's words are ours)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.alignment.contexts.demonstrations import SCORES, Texts
from opd_verl.alignment.contexts.rounds import ask_in_rounds
from opd_verl.alignment.contexts.settings import SUMMARIES
from opd_verl.data.files import replace_column, take
from opd_verl.data.judged import Judged
from opd_verl.data.prompts import rows_of
from opd_verl.data.rows import bare_question
from opd_verl.sampling.prompts import Model, check_lengths, encode
from opd_verl.sampling.rollouts import Sampler

PROMPT = """\
Condense the solution below to its key reasoning steps and its final answer. Keep both as they are, right or wrong: \
correct nothing, judge nothing, add nothing. Give the final answer in the form in which the solution gives it.

Problem:

{question}

Solution:

{solution}

Reply with the condensed solution alone."""
END_OF_THINKING = "</think>"
TRIALS = 3
"""Most attempts at one summary; an attempt fails if it is cut or empty."""


@dataclass(frozen=True)
class Summaries:
    """Summaries of the demonstrations, and how many failed."""

    fields: dict[str, Texts]
    """`correct_summaries`, `wrong_summaries`."""
    asked: int
    """Demonstrations that were to be summarised."""
    missing: int
    """Demonstrations for which no attempt finished with a text."""
    judged_otherwise: int
    """Summaries that turned a wrong solution's answer right, or a correct solution's answer wrong."""


def summarise(
    model: Model, rows: pa.Table, solutions: Mapping[str, Texts], sampler: Sampler, folder: Path
) -> Summaries:
    """Summarises each of `solutions` (`correct` and `wrong`: the texts of every row).

    Raises ConfigError if a solution and its summary exceed the model's context.
    """
    places = [(kind, row, text) for kind, every in solutions.items() for row, own in enumerate(every) for text in own]
    origins = [row for _, row, _ in places]
    questions = [bare_question(row) for row in rows_of(rows)]
    prompts = [_messages(questions[row], text) for _, row, text in places]
    _check(model, len(rows), origins, prompts, sampler)
    asked = replace_column(take(rows, origins), "prompt", prompts)
    judged = ask_in_rounds(model, asked, sampler, [1] * TRIALS, folder, lambda attempts: not summaries(attempts))
    return _collected(len(rows), list(solutions), [(kind, row) for kind, row, _ in places], judged)


def _collected(
    count: int, kinds: Sequence[str], places: Sequence[tuple[str, int]], judged: Sequence[Judged]
) -> Summaries:
    fields: dict[str, Texts] = {kind + SUMMARIES: [[] for _ in range(count)] for kind in kinds}
    otherwise = missing = 0
    for (kind, row), attempts in zip(places, judged, strict=True):
        # At most one summary: each round is one attempt, and the first attempt that gives a text is the last.
        usable = summaries(attempts)
        fields[kind + SUMMARIES][row] += usable
        missing += not usable
        otherwise += bool(usable) and attempts.scores[-1] != SCORES[kind]
    return Summaries(fields, len(places), missing, otherwise)


def summaries(judged: Judged) -> list[str]:
    """Texts after the reasoning of the finished responses; empty texts are left out."""
    pairs = zip(judged.responses, judged.finished, strict=True)
    said = [text.rpartition(END_OF_THINKING)[2].strip() for text, finished in pairs if finished]
    return [text for text in said if text]


def _messages(question: str, solution: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT.format(question=question, solution=solution)}]


def _check(
    model: Model, count: int, places: Sequence[int], prompts: Sequence[list[dict[str, str]]], sampler: Sampler
) -> None:
    """Checks every row's longest prompt, so that the message names the row."""
    longest: list[list[int]] = [[] for _ in range(count)]
    for place, prompt in zip(places, prompts, strict=True):
        longest[place] = max(longest[place], encode(model.tokenizer, prompt, sampler.settings), key=len)
    check_lengths(model, longest, sampler.settings, "the prompts, with the solution to summarise,")
