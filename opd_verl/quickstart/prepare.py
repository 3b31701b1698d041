"""Makes the models and data of a quickstart run once; the next run with the same settings reuses them."""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from opd_verl.quickstart.evaluate import evaluate
from opd_verl.quickstart.models import STUDENT, TEACHER, ModelSize, build_model, save_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.sft import STUDENT_SFT, TEACHER_SFT, SftSettings, StopRule, train_until
from opd_verl.quickstart.task import COLUMNS, Addition, distinct_problems, write_parquet
from opd_verl.quickstart.tokenizer import build_tokenizer

TRAIN_PROMPTS, HELDOUT_PROMPTS = 16384, 256
EVAL_PROBLEMS, STOP_PROBLEMS = 200, 64
TEACHER_TARGET = 0.95
TEACHER_AT_LEAST, STUDENT_BELOW = 0.90, 0.40
"""Bounds of teacher's and student's accuracy within which a distillation can show a gain."""
DONE = "prepared.json"


def eval_problems() -> list[Addition]:
    """Returns the held-out problems of all measurements; they are equal for every seed."""
    return distinct_problems("heldout", EVAL_PROBLEMS, seed=0)


def stop_problems() -> list[Addition]:
    """Returns held-out problems that decide when the teacher is good enough; they are disjoint from `eval_problems`."""
    return distinct_problems("heldout", EVAL_PROBLEMS + STOP_PROBLEMS, seed=0)[EVAL_PROBLEMS:]


def check_contract(student: float, teacher: float) -> None:
    """Refuses models with little to distil between them. Accuracies are at temperature 1 on held-out problems.

    Raises:
        SystemExit: the teacher does not solve the task, or the student nearly does; the message has both accuracies.
    """
    if teacher < TEACHER_AT_LEAST or student >= STUDENT_BELOW:
        raise SystemExit(
            f"this seed's models leave little to distil: the teacher solves {teacher:.1%} of the held-out problems "
            f"(at least {TEACHER_AT_LEAST:.0%} wanted), the student {student:.1%} (less than {STUDENT_BELOW:.0%} "
            "wanted); try another --seed"
        )


@dataclass(frozen=True)
class Pupil:
    """One of the two models to make."""

    directory: Path
    size: ModelSize
    settings: SftSettings
    target: float | None
    """Stop at this accuracy (temperature 1, held-out problems); None: use all steps."""


def pupils(paths: Paths, seed: int) -> list[Pupil]:
    """The two models: the teacher learns correct work until it solves the task, the student learns careless work."""
    teacher, student = replace(TEACHER_SFT, seed=seed), replace(STUDENT_SFT, seed=seed + 1)
    return [Pupil(paths.teacher, TEACHER, teacher, TEACHER_TARGET), Pupil(paths.student, STUDENT, student, None)]


def made_with(todo: Sequence[Pupil], seed: int) -> dict[str, object]:
    """Returns the settings that decide models and data, as JSON would read them back."""
    models = [asdict(pupil) | {"directory": pupil.directory.name} for pupil in todo]
    sizes = {"columns": COLUMNS, "train": TRAIN_PROMPTS, "heldout": HELDOUT_PROMPTS, "stop": STOP_PROBLEMS}
    return json.loads(json.dumps({"seed": seed, "problems": sizes, "models": models}))


def prepare(paths: Paths, seed: int, todo: Sequence[Pupil] | None = None) -> PreTrainedTokenizerFast:
    """Makes tokenizer, data and models under `paths.root`, unless they were made there with the same settings.

    Args:
        todo: the models to make, teacher first; None: the quickstart's own pair.

    Returns:
        the tokenizer of all models.
    """
    done, todo = paths.root / DONE, todo or pupils(paths, seed)
    settings = made_with(todo, seed)
    if done.exists() and json.loads(done.read_text()).get("settings") == settings:
        print(f"reusing the models and data in {paths.root}")
        return AutoTokenizer.from_pretrained(paths.teacher)
    done.unlink(missing_ok=True)
    for stale in (paths.tokenizer, paths.data, paths.teacher, paths.student):
        shutil.rmtree(stale, ignore_errors=True)
    write_parquet(paths.data, TRAIN_PROMPTS, HELDOUT_PROMPTS, seed)
    tokenizer = build_tokenizer(paths.tokenizer)
    # One process and thread per model: at this size a second thread waits more than it works. Spawned, not
    # forked: torch's thread pools do not survive a fork.
    with ProcessPoolExecutor(len(todo), mp_context=get_context("spawn"), initializer=single_thread) as pool:
        steps = list(pool.map(train, todo, [paths.tokenizer] * len(todo), range(len(todo))))
    done.write_text(json.dumps({"settings": settings, "teacher_steps": steps[0], "student_steps": steps[1]}, indent=2))
    return tokenizer


def single_thread() -> None:
    """Limits this process to one thread."""
    torch.set_num_threads(1)
    disable_progress_bar()  # models this small are written before transformers' bar is drawn


def train(pupil: Pupil, tokenizer_path: Path, line: int) -> int:
    """Builds, fine-tunes and saves a model. Returns the steps taken. `line`: terminal line of the progress bar."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    model = build_model(pupil.size, tokenizer, pupil.settings.seed)
    stop = None
    if pupil.target is not None:
        problems = stop_problems()
        stop = StopRule(lambda m: evaluate(m, tokenizer, problems, samples=2).accuracy, pupil.target, 100)
    steps = train_until(model, tokenizer, pupil.settings, stop, f"{pupil.directory.name} SFT", line)
    save_model(model, tokenizer, pupil.directory)
    return steps
