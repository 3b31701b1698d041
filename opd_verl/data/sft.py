"""Turn rollouts into verl's SFT format: one row per response, `messages` = the prompt and the assistant's answer.

  python -m opd_verl.data sft rollouts.parquet --only-correct --only-finished --out sft.parquet

The file serves a cold start (Rethinking) or the KD baseline (EOPD): verl's MultiTurnSFTDataset reads `messages`. The
columns of the prompt and `model` stay. An empty response is left out. A response that was cut at the length limit
teaches the student to stop there: --only-finished leaves it out.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import parquet, read_table, replace_column, take, write_table
from opd_verl.data.judged import check_rollouts
from opd_verl.data.report import by_reason
from opd_verl.data.rows import Row
from opd_verl.schema import ROLLOUT_COLUMNS

PER_RESPONSE = ("responses", "finished", "scores")


class Example(NamedTuple):
    """One conversation to train on."""

    row: int
    """Row of the prompt in the file, from 0."""
    messages: list[Row]
    finished: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `sft`."""
    parser.add_argument("file", type=Path, metavar="ROLLOUTS", help="rollouts of one model")
    parser.add_argument("--out", type=parquet, required=True, help="parquet file to write")
    parser.add_argument("--only-correct", action="store_true", help="leave out responses that are wrong or not judged")
    parser.add_argument("--only-finished", action="store_true", help="leave out responses cut at the length limit")


def run(options: argparse.Namespace) -> None:
    """Makes one row per response and writes them. Prints the counts."""
    table = read_table(options.file, ("prompt", *PER_RESPONSE))
    rows = table.select(["prompt", *PER_RESPONSE]).to_pylist()
    check_rollouts([{name: row[name] for name in PER_RESPONSE} for row in rows], options.file)
    examples, left_out = expand(rows, options.only_correct, options.only_finished)
    left = f"left out {left_out.total()}{by_reason(left_out)}"
    if not examples:
        raise ConfigError(
            "ROLLOUTS", str(options.file), f"no response is left: {left}", "drop an --only, or sample more"
        )
    names = [name for name in table.column_names if name == "model" or name not in ("prompt", *ROLLOUT_COLUMNS)]
    kept = take(table.select(names), [example.row for example in examples])
    write_table(replace_column(kept, "messages", [example.messages for example in examples]), options.out)
    if cut := sum(not example.finished for example in examples):
        print(f"warning: {cut} responses were cut at the length limit; see --only-finished", file=sys.stderr)
    read = len(examples) + left_out.total()
    print(f"read {read} responses to {len(rows)} prompts, written {len(examples)}, {left} -> {options.out}")


def expand(rows: Sequence[Row], only_correct: bool, only_finished: bool) -> tuple[list[Example], Counter[str]]:
    """Returns an example per kept response, in their order, and counts of the others by reason."""
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for place, row in enumerate(rows):
        for response, finished, score in zip(*(row[name] for name in PER_RESPONSE), strict=True):
            if reason := refused(response, finished, score, only_correct, only_finished):
                left_out[reason] += 1
            else:
                messages = [*row["prompt"], {"role": "assistant", "content": response}]
                examples.append(Example(place, messages, finished))
    return examples, left_out


def refused(response: str, finished: bool, score: float | None, only_correct: bool, only_finished: bool) -> str | None:
    """Says why a response is left out; None: it is kept."""
    if not response.strip():
        return "empty"
    if only_finished and not finished:
        return "not finished"
    if only_correct and score != 1.0:
        return "not judged" if score is None else "wrong"
    return None
