"""Soaks the teacher's actor: does its memory stay flat over thousands of rollouts?

`python tests/benchmarks/teacher_soak.py --sequences 10000 --out soak.md` runs a tiny teacher without Ray. Every step
submits rollouts of mixed lengths, collects seven of eight with log q at ids, and leaves the eighth to a later step.
"""

import argparse
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from step_measure import MIB, status_bytes
from step_table import row, verdict
from teacher_inputs import TeacherSize, save_teacher

from opd_verl.config.sections import TeacherConfig
from opd_verl.teacher.replica.actor import CollectItem, TeacherActor
from opd_verl.teacher.score import CollectSpec
from opd_verl.teacher.settings import TeacherSettings

TINY = TeacherSize(128, 2, 4096)
LONGEST_PROMPT, LONGEST_RESPONSE = 64, 128
K = 16
ABANDONED = 8
"""Every eighth rollout is never collected."""
FIFTH = 0.2
"""Memory is compared between the second fifth of the sequences and the last: in the first fifth it still grows."""
GROWTH_LIMIT = 1.05
SAMPLES = 20
COLUMNS = ("sequences", "steps", "RSS MiB", "against median", "states MiB", "queue", "response tokens/s")


class MemorySample(NamedTuple):
    """The state after some steps: memory of the process and of the kept states (bytes), queue, tokens, seconds."""

    sequences: int
    steps: int
    rss: int
    state_bytes: int
    queue: int
    tokens: int
    seconds: float


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10000)
    parser.add_argument("--per-step", type=int, default=64, help="rollouts per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the table, which is also printed")
    return parser.parse_args()


def step_rollouts(step: int, count: int, random: np.random.Generator) -> list[CollectItem]:
    """Makes the rollouts of one step: prompts of 1 token or more, responses of 0 or more, ids that are asked later."""

    def ids(*shape: int) -> np.ndarray:
        return random.integers(0, TINY.vocabulary, shape, dtype=np.int32)

    prompts = random.integers(1, LONGEST_PROMPT + 1, count)
    responses = random.integers(0, LONGEST_RESPONSE + 1, count)
    lengths = enumerate(zip(prompts, responses, strict=True))
    return [(f"{step:06d}.{i:05d}_0_0", ids(prompt), ids(length), ids(length, K)) for i, (prompt, length) in lengths]


def sample(actor: TeacherActor, sequences: int, steps: int, start: float) -> MemorySample:
    """Takes a sample, after Python's garbage collection."""
    gc.collect()
    stats = actor.stats()
    state_bytes, queue, tokens = (int(stats[name]) for name in ("state_bytes", "queue_length", "tokens_scored"))
    return MemorySample(
        sequences, steps, status_bytes("VmRSS"), state_bytes, queue, tokens, time.perf_counter() - start
    )


def soak(actor: TeacherActor, sequences: int, per_step: int) -> Iterator[MemorySample]:
    """Yields a sample after each 1 / SAMPLES of the sequences. Raises RuntimeError for a rollout without score."""
    random, start = np.random.default_rng(0), time.perf_counter()
    done, step, taken = 0, 0, 0
    while done < sequences:
        step += 1
        asked = step_rollouts(step, min(per_step, sequences - done), random)
        for item in asked:  # each alone, as the agent loops submit them
            actor.submit([item[:3]], step)
        wanted = [item for index, item in enumerate(asked) if index % ABANDONED != ABANDONED - 1]
        answers = actor.collect(wanted, CollectSpec(step, topk=K))
        if failed := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError(failed[0])
        done += len(asked)
        if done * SAMPLES >= (taken + 1) * sequences:
            taken = done * SAMPLES // sequences
            yield sample(actor, done, step, start)


def growth(samples: list[MemorySample], sequences: int) -> float:
    """Returns the median memory of the last fifth over that of the second fifth.

    Medians, since a single sample may fall into a forward pass. Raises ValueError where a fifth has no sample.
    """
    early, late = (
        [sample.rss for sample in samples if low <= sample.sequences / sequences <= low + FIFTH]
        for low in (FIFTH, 1 - FIFTH)
    )
    if not early or not late:
        raise ValueError(f"{len(samples)} samples of {sequences} sequences are too few; score more, or fewer a step")
    return median(late) / median(early)


def markdown(samples: list[MemorySample], sequences: int, heading: str) -> str:
    """Returns the samples as a table, and whether memory grew."""
    base = median(sample.rss for sample in samples)
    rows = [
        [
            str(sample.sequences),
            str(sample.steps),
            f"{sample.rss / MIB:.1f}",
            f"{sample.rss / base - 1:+.1%}",
            f"{sample.state_bytes / MIB:.2f}",
            str(sample.queue),
            f"{sample.tokens / sample.seconds:.0f}",
        ]
        for sample in samples
    ]
    target, measured, met = verdict(growth(samples, sequences), GROWTH_LIMIT, ".3f")
    last = f"Median RSS from 80% to 100% over that from 20% to 40%: {measured}, target {target}: {met}."
    return "\n".join([heading, "", *map(row, [COLUMNS, ["---"] * len(COLUMNS), *rows]), "", last]) + "\n"


def main() -> None:
    """Prints the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    settings = TeacherSettings(TeacherConfig(dtype="float32"), vocab_limit=TINY.vocabulary, device="cpu", topk=K)
    with TemporaryDirectory() as folder:
        path = save_teacher(TINY, torch.float32, LONGEST_PROMPT + LONGEST_RESPONSE, Path(folder))
        actor = TeacherActor(replace(settings, teacher=replace(settings.teacher, path=path)))
        samples = list(soak(actor, args.sequences, args.per_step))
    heading = (
        f"# Soak of the teacher's actor\n\n{args.sequences} sequences, {args.per_step} a step; {TINY}, float32, "
        f"{args.threads} threads; load {load:.1f} before, {os.getloadavg()[0]:.1f} after."
    )
    text = markdown(samples, args.sequences, heading)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
