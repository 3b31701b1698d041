"""The known data sets: the hub name of each, and how to read question, answer and solution from its raw rows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from opd_verl.data.rows import BadRow, Row, column, question_text
from opd_verl.rewards import last_boxed

Column = Callable[[Row], object]
"""Reads one value from a raw row. Raises BadRow."""
BOTH = {"train": "train", "test": "test"}
TRAIN = {"train": "train"}
TEST = {"test": "test"}
TEST_NAMED_TRAIN = {"test": "train"}
"""A test set whose only split is called train on the hub."""


@dataclass(frozen=True)
class KnownSet:
    """One data set."""

    repo: str
    """Name on the hub; also the `data_source` of rows without one."""
    splits: Mapping[str, str]
    """Name of each split on the hub. The first split is the default."""
    question: Column
    """Text, bare or with a known instruction."""
    answer: Column
    """Text or a number."""
    solution: Column = lambda row: None
    """A worked solution, or None."""
    config: str | None = None
    """Configuration of the hub's data set, if it has several."""
    keep: tuple[str, ...] = ()
    """Raw columns that are kept in `extra_info`, as text."""


def value(name: str) -> Column:
    """Reads a column that must be there."""
    return partial(column, name=name)


def optional(name: str) -> Column:
    """Reads a column; None if it is not there."""
    return lambda row: row.get(name)


def after_hashes(row: Row) -> str:
    """Reads GSM8K's answer: the number after `####`, without thousands separators."""
    number = re.search(r"####\s*(-?[\d.,]+)\s*\Z", question_text(column(row, "answer")))
    if not number:
        raise BadRow("unparsable answer", "it does not end in '#### number'")
    return number.group(1).replace(",", "")


def without_calculator(row: Row) -> str:
    """Reads GSM8K's solution with its last line `#### number`, without the calculator's `<<16-3-4=9>>`."""
    return re.sub(r"<<[^>]*>>", "", row["answer"])


def boxed_in_solution(row: Row) -> str:
    """Reads MATH's answer: the content of the last `\\boxed{...}`, or the word after a `\\boxed` without braces."""
    text = str(column(row, "solution") or "")
    answers = [word.rstrip(".") for word in re.findall(r"\\boxed\s+([^\s${]+)", text)]
    if (boxed := last_boxed(text)) is not None:
        answers.append(boxed)
    if not answers:
        raise BadRow("unparsable answer", "there is no \\boxed{...} in the solution")
    return answers[-1]


def final_answers(row: Row) -> object:
    """Reads OlympiadBench's answers as one text."""
    answers = column(row, "final_answer")
    return ",".join(map(str, answers)) if isinstance(answers, list) else answers


def first_solution(row: Row) -> object:
    """Reads the first of OlympiadBench's solutions."""
    solutions = row.get("solution")
    return solutions[0] if isinstance(solutions, list) and solutions else None


def verified_generation(row: Row) -> str | None:
    """Reads OpenR1's first generation that math-verify accepts and that is complete, with its thinking, verbatim."""
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
    # The rows are in verl's format already. The hub's file holds each row about a hundred times: run `dedup` on it.
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
    # This set has the 83 problems of AMC 12 2022 and 2023.
    "amc23": KnownSet("AI-MO/aimo-validation-amc", TEST_NAMED_TRAIN, value("problem"), value("answer")),
    "minerva": KnownSet("math-ai/minervamath", TEST, value("question"), value("answer")),
    "olympiadbench": KnownSet(
        "math-ai/olympiadbench", TEST, value("question"), final_answers, first_solution, keep=("subfield",)
    ),
}
