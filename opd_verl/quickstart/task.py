"""The quickstart's task: add two three-digit numbers, one column per line, the carry written out.

    What is 486 + 378? Put the answer in \\boxed{}.      ->      6+8+0=14
                                                                8+7+1=16
                                                                4+3+1=08
                                                                \\boxed{864}

A column reads `left digit + right digit + carry = two-digit sum`. The teacher is trained on correct work, the student
on careless work: it knows the format and the digit sums, but forgets most carries. So its greedy answer is wrong too,
and distillation can improve it. Training and held-out problems are disjoint by a hash of the operands.
"""

import random
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

Split = Literal["train", "heldout"]

DATA_SOURCE = "opd_verl/column_addition"
COLUMNS = 3
SMALLEST, LARGEST = 10 ** (COLUMNS - 1), 10**COLUMNS - 1
HELDOUT_ONE_IN = 10
"""One problem in ten is held out."""


@dataclass(frozen=True)
class Addition:
    """One problem: `left + right`, both with exactly `COLUMNS` digits."""

    left: int
    right: int

    @property
    def answer(self) -> str:
        """The correct sum as a decimal string."""
        return str(self.left + self.right)

    @property
    def split(self) -> Split:
        """Split of this problem. crc32, not `hash`: the split must be the same in every process and for every seed."""
        return "heldout" if zlib.crc32(f"{self.left}+{self.right}".encode()) % HELDOUT_ONE_IN == 0 else "train"


def problem_stream(split: Split, seed: int) -> Iterator[Addition]:
    """Yields problems of one split without end, uniform with replacement; equal seeds give equal sequences."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        problem = Addition(rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST))
        if problem.split == split:
            yield problem


def distinct_problems(split: Split, count: int, seed: int) -> list[Addition]:
    """Returns the first `count` distinct problems of `problem_stream(split, seed)`."""
    distinct: dict[Addition, None] = {}
    for problem in problem_stream(split, seed):
        if len(distinct) == count:
            break
        distinct[problem] = None
    return list(distinct)


def question(problem: Addition) -> str:
    """Returns the user's message."""
    return f"What is {problem.left} + {problem.right}? Put the answer in \\boxed{{}}."


def chat(problem: Addition) -> list[dict[str, str]]:
    """Returns the question as chat messages, the form of verl's `prompt` column."""
    return [{"role": "user", "content": question(problem)}]


def solution(problem: Addition, forgotten: Sequence[bool] = (False,) * COLUMNS, misadded: Collection[int] = ()) -> str:
    """Returns the worked solution, columns from the right, ending in `\\boxed{answer}`.

    Args:
        problem: the sum to work out.
        forgotten: [COLUMNS] whether the carry out of each column is dropped, columns from the right; the carry out of
            the last column is the answer's leading 1. The boxed answer follows from the work, also from careless work.
        misadded: sums of two digits to which one too much is added.
    """
    lines, total, carry = [], 0, 0
    for column, forget in enumerate(forgotten):
        left, right = (operand // 10**column % 10 for operand in (problem.left, problem.right))
        column_sum = left + right + carry + (left + right in misadded)
        lines.append(f"{left}+{right}+{carry}={column_sum:02d}")
        total += column_sum % 10 * 10**column
        carry = 0 if forget else column_sum // 10
    return "\n".join([*lines, f"\\boxed{{{total + carry * 10**COLUMNS}}}"])


def careless_solution(problem: Addition, forget: float, rng: random.Random, misadded: Collection[int] = ()) -> str:
    """Returns a solution that forgets each carry independently with probability `forget`."""
    return solution(problem, [rng.random() < forget for _ in range(COLUMNS)], misadded)


def open_lines(text: str, weights: Sequence[float], rng: random.Random) -> str:
    """Begins every line but the last with a letter (a, b, c, ...) drawn by `weights`.

    With equal weights each of these places is a fork: all continuations are equally good.
    """
    letters = [chr(ord("a") + index) for index in range(len(weights))]
    *lines, last = text.split("\n")
    return "\n".join([*(f"{rng.choices(letters, weights)[0]} {line}" for line in lines), last])


def rows(split: Split, problems: Sequence[Addition]) -> list[dict[str, object]]:
    """Returns the problems as rows of verl's parquet format."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": chat(problem),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"split": split, "index": index},
        }
        for index, problem in enumerate(problems)
    ]


def write_parquet(directory: Path, train: int, heldout: int, seed: int) -> tuple[Path, Path]:
    """Writes `train.parquet` and `heldout.parquet` with these numbers of distinct prompts. Returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    counts: dict[Split, int] = {"train": train, "heldout": heldout}
    for split, count in counts.items():
        frame = pd.DataFrame(rows(split, distinct_problems(split, count, seed)))
        frame.to_parquet(directory / f"{split}.parquet")
    return directory / "train.parquet", directory / "heldout.parquet"
