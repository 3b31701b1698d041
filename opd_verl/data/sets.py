"""The known sets: where each is on the hub, and how question, answer and solution are read from one of its raw rows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from opd_verl.data.rows import BadRow, Row, column, question_text
from opd_verl.rewards import last_boxed

Reader = Callable[[Row], Any]
BOTH = {"train": "train", "test": "test"}
TRAIN = {"train": "train"}
TEST = {"test": "test"}
TEST_NAMED_TRAIN = {"test": "train"}
"""A test set that the hub calls train, its only split."""


@dataclass(frozen=True)
class KnownSet:
    """One set: the readers take a raw row and raise BadRow."""

    repo: str
    """On the hub; also the `data_source` of rows that do not name theirs."""
    splits: Mapping[str, str]
    """Our split: the hub's. The first is the default."""
    question: Reader
    """Text, bare or with a known instruction."""
    answer: Reader
    """Text or a number."""
    solution: Reader = lambda row: None
    """A worked solution, or None."""
    config: str | None = None
    """Of the hub's data set."""
    keep: tuple[str, ...] = ()
    """Raw columns that go to `extra_info`, as texts."""


def value(name: str) -> Reader:
    """Reads one column, which must be there."""
    return partial(column, name=name)


def optional(name: str) -> Reader:
    """Reads one column, None if it is not there."""
    return lambda row: row.get(name)


def after_hashes(row: Row) -> str:
    """GSM8K: the number after `####`, without thousands separators."""
    found = re.search(r"####\s*(-?[\d.,]+)\s*\Z", question_text(column(row, "answer")))
    if not found:
        raise BadRow("unparsable answer", "it does not end in '#### number'")
    return found.group(1).replace(",", "")


def without_calculator(row: Row) -> str:
    """GSM8K: the rationale and its last line `#### number`, without the `<<16-3-4=9>>` of the calculator."""
    return re.sub(r"<<[^>]*>>", "", row["answer"])


def boxed_in_solution(row: Row) -> str:
    """MATH: what the solution's last `\\boxed{...}` holds, or the word after a `\\boxed` without braces."""
    text = str(column(row, "solution") or "")
    found = [word.rstrip(".") for word in re.findall(r"\\boxed\s+([^\s${]+)", text)]
    if (boxed := last_boxed(text)) is not None:
        found.append(boxed)
    if not found:
        raise BadRow("unparsable answer", "there is no \\boxed{...} in the solution")
    return found[-1]


def final_answers(row: Row) -> Any:
    """OlympiadBench: the list of answers, as one text."""
    found = column(row, "final_answer")
    return ",".join(map(str, found)) if isinstance(found, list) else found


def first_solution(row: Row) -> Any:
    """OlympiadBench: the first of the solutions."""
    found = row.get("solution")
    return found[0] if isinstance(found, list) and found else None


def verified_generation(row: Row) -> str | None:
    """OpenR1: the first generation that math-verify accepts and that is complete, with its thinking, verbatim."""
    lists = (row.get(name) or [] for name in ("generations", "correctness_math_verify", "is_reasoning_complete"))
    return next((text for text, correct, complete in zip(*lists, strict=False) if correct and complete), None)


SETS: dict[str, KnownSet] = {
    "gsm8k": KnownSet("openai/gsm8k", BOTH, value("question"), after_hashes, without_calculator, config="main"),
    "math": KnownSet(
        "DigitalLearningGmbH/MATH-lighteval",
        BOTH,
        value("problem"),
        boxed_in_solution,
        value("solution"),
        keep=("level", "type"),
    ),
    "math500": KnownSet(
        "HuggingFaceH4/MATH-500",
        TEST,
        value("problem"),
        value("answer"),
        optional("solution"),
        keep=("level", "subject", "unique_id"),
    ),
    # In verl's format already; the hub's file has each row a hundred times over: `dedup` after it.
    "dapo-math-17k": KnownSet("BytedTsinghua-SIA/DAPO-Math-17k", TRAIN, value("prompt"), value("reward_model")),
    "deepmath": KnownSet(
        "zwhe99/DeepMath-103K",
        TRAIN,
        value("question"),
        value("final_answer"),
        optional("r1_solution_1"),
        keep=("difficulty", "topic"),
    ),
    "openr1-math": KnownSet(
        "open-r1/OpenR1-Math-220k",
        TRAIN,
        value("problem"),
        value("answer"),
        verified_generation,
        config="default",
        keep=("problem_type", "source", "uuid"),
    ),
    "aime24": KnownSet(
        "HuggingFaceH4/aime_2024", TEST_NAMED_TRAIN, value("problem"), value("answer"), optional("solution")
    ),
    "aime25": KnownSet("math-ai/aime25", TEST, value("problem"), value("answer")),
    # The 83 problems of AMC 12 2022 and 2023.
    "amc23": KnownSet("AI-MO/aimo-validation-amc", TEST_NAMED_TRAIN, value("problem"), value("answer")),
    "minerva": KnownSet("math-ai/minervamath", TEST, value("question"), value("answer")),
    "olympiadbench": KnownSet(
        "math-ai/olympiadbench", TEST, value("question"), final_answers, first_solution, keep=("subfield",)
    ),
}
