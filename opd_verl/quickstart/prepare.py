"""The models and data of one quickstart run: made once, found again by the next run."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opd_verl.quickstart.evaluate import evaluate
from opd_verl.quickstart.models import STUDENT, TEACHER, ModelSize, build_model, save_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.sft import STUDENT_SFT, TEACHER_SFT, SftSettings, StopRule, train_until
from opd_verl.quickstart.task import Problem, distinct_problems, write_parquet
from opd_verl.quickstart.tokenizer import build_tokenizer

TRAIN_PROMPTS, HELDOUT_PROMPTS = 16384, 256
TEACHER_TARGET = 0.95
DONE = "prepared.json"


def heldout_problems(count: int) -> list[Problem]:
    """The problems on which everything is measured; the same for every seed."""
    return distinct_problems("heldout", count, seed=0)


@dataclass(frozen=True)
class Pupil:
    """One of the two models to make."""

    directory: Path
    size: ModelSize
    settings: SftSettings
    target: float | None
    """Stop at this accuracy (temperature 1, held-out problems); None: use all steps."""


def pupils(paths: Paths, seed: int) -> list[Pupil]:
    """The teacher learns correct work until it solves the task, the student careless work."""
    teacher, student = replace(TEACHER_SFT, seed=seed), replace(STUDENT_SFT, seed=seed + 1)
    return [Pupil(paths.teacher, TEACHER, teacher, TEACHER_TARGET), Pupil(paths.student, STUDENT, student, None)]


def prepare(paths: Paths, seed: int) -> PreTrainedTokenizerFast:
    """Tokenizer, data, teacher and student under `paths`; does nothing where they are already there."""
    if (paths.root / DONE).exists():
        print(f"reusing the models and data in {paths.root}")
        return AutoTokenizer.from_pretrained(paths.teacher)
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.root.mkdir(parents=True)
    write_parquet(paths.data, TRAIN_PROMPTS, HELDOUT_PROMPTS, seed)
    tokenizer = build_tokenizer(paths.root / "tokenizer")
    todo = pupils(paths, seed)
    # One thread each: at this size a second thread waits more than it works.
    with ProcessPoolExecutor(len(todo), mp_context=get_context("spawn"), initializer=single_thread) as pool:
        steps = list(pool.map(train, todo, [paths.root / "tokenizer"] * len(todo), range(len(todo))))
    (paths.root / DONE).write_text(json.dumps({"seed": seed, "teacher_steps": steps[0], "student_steps": steps[1]}))
    return tokenizer


def single_thread() -> None:
    """Holds this process to one core."""
    torch.set_num_threads(1)


def train(pupil: Pupil, tokenizer_path: Path, line: int) -> int:
    """Builds a model, fine-tunes it and saves it; returns the steps taken."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    model = build_model(pupil.size, tokenizer, pupil.settings.seed)
    stop = None
    if pupil.target is not None:
        problems = heldout_problems(64)
        stop = StopRule(lambda m: evaluate(m, tokenizer, problems, samples=2).accuracy, pupil.target, 100)
    steps = train_until(model, tokenizer, pupil.settings, stop, f"{pupil.directory.name} SFT", line)
    save_model(model, tokenizer, pupil.directory)
    return steps
