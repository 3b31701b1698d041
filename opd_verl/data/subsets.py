"""Split prompts by the teachers that solve them: both_correct, both_wrong and mixed (Capacity 5.1).

  python -m opd_verl.data subsets --rollouts qwen7b.parquet qwen14b.parquet --out-dir data/subsets --size 7000 --seed 0

A teacher solves a prompt if at least --at-least of its rollouts are correct (1 of 4 in the paper), and fails if it
cannot reach that number even if every unjudged rollout is correct. both_correct.parquet holds the prompts that all
teachers solve, both_wrong.parquet the prompts that no teacher solves, mixed.parquet the others. --size draws this many
rows of both_correct and of both_wrong; mixed stays whole.

A prompt is counted and left out if a file lacks it, or if an unjudged rollout leaves its verdict open. Rows come from
the first file, without its rollouts; a question that is there several times gives its first row.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import read_table, take, write_table
from opd_verl.data.judged import read_judged, without_rollouts
from opd_verl.data.prompts import KEYS, keys

DRAWN = ("both_correct", "both_wrong")
SUBSETS = (*DRAWN, "mixed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `subsets`."""
    parser.add_argument("--rollouts", type=Path, nargs="+", required=True, help="judged rollouts, a file per teacher")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for the three files")
    parser.add_argument(
        "--at-least", type=int, default=1, help="correct rollouts that make a prompt correct; default 1"
    )
    parser.add_argument("--size", type=int, help="rows of both_correct and of both_wrong, drawn at random; default all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw; default 0")
    parser.add_argument("--key", choices=KEYS, default=KEYS[0], help="field that matches the rows of two files")


def run(options: argparse.Namespace) -> None:
    """Splits the prompts and writes three files. Prints the counts."""
    if options.at_least < 1:
        raise ConfigError("--at-least", options.at_least, "every prompt would be correct", "give 1 or more")
    judged = [read_judged(path, options.key, responses=False) for path in options.rollouts]
    verdicts = [{key: verdict(rollouts.scores, options.at_least) for key, rollouts in file.items()} for file in judged]
    members = split(verdicts)
    if options.size is not None:
        members |= {name: draw(members[name], options.size, options.seed, name) for name in DRAWN}
    table = read_table(options.rollouts[0])
    places = {key: place for place, key in reversed(list(enumerate(keys(table, options.rollouts[0], options.key))))}
    for name in SUBSETS:
        chosen = take(table, [places[key] for key in members[name]])
        write_table(without_rollouts(chosen), options.out_dir / f"{name}.parquet")
    counts = ", ".join(f"{name} {len(questions)}" for name, questions in members.items())
    print(f"read {table.num_rows} rows of {len(verdicts[0])} prompts: {counts} -> {options.out_dir}")


def verdict(scores: Sequence[float | None], at_least: int) -> bool | None:
    """Says whether at least `at_least` scores are correct; None if unjudged rollouts leave it open."""
    if scores.count(1.0) >= at_least:
        return True
    return None if scores.count(1.0) + scores.count(None) >= at_least else False


def split(verdicts: Sequence[Mapping[str, bool | None]]) -> dict[str, list[str]]:
    """Sorts every prompt into one of the three subsets, `unjudged`, or `missing` from a file; the order is kept."""
    members: dict[str, list[str]] = {name: [] for name in (*SUBSETS, "unjudged", "missing")}
    for key in dict.fromkeys(key for teacher in verdicts for key in teacher):
        members[_subset([teacher.get(key, "missing") for teacher in verdicts])].append(key)
    return members


def _subset(verdicts: Sequence[bool | str | None]) -> str:
    if "missing" in verdicts:
        return "missing"
    if None in verdicts:
        return "unjudged"
    return "both_correct" if all(verdicts) else "mixed" if any(verdicts) else "both_wrong"


def draw(members: Sequence[str], size: int, seed: int, name: str) -> list[str]:
    """Draws `size` members and keeps their order. Raises ConfigError if there are fewer."""
    if not 0 < size <= len(members):
        raise ConfigError("--size", size, f"{name} has {len(members)} prompts", "choose a size that both subsets have")
    return [members[place] for place in sorted(random.Random(seed).sample(range(len(members)), size))]
