"""Trained tiny models and the real `main_ppo` as a child process. Shared by all end-to-end tests."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_nodes import RayNodes

from opd_verl.metrics.names import CONDITIONAL
from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.models import STUDENT, TEACHER
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import Pupil, train
from opd_verl.quickstart.sft import STUDENT_SFT, TEACHER_SFT
from opd_verl.quickstart.task import write_parquet
from opd_verl.quickstart.tokenizer import build_tokenizer
from opd_verl.tracking.metrics_file import read_steps
from opd_verl.tracking.metrics_log import logged
from opd_verl.utils.files import tail

Steps = list[dict[str, float]]
Run = Callable[..., Steps]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 600
SMALL = (
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=constant",  # a shorter run is the beginning of a longer one
)
SAMPLED = (*SMALL, "actor_rollout_ref.actor.optim.lr=1e-4")
"""One token's r_t is noisy: with more, the first steps of this small batch lead away."""
CONDITIONAL_NAMES = set(CONDITIONAL)
PATTERNS = {name: re.compile(re.sub(r"<[a-z]+>", r"\\w+", name)) for name in CONDITIONAL if "<" in name}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A teacher and a student of the quickstart's kind, trained for fewer steps."""
    paths = Paths(tmp_path_factory.mktemp("models"))
    write_parquet(paths.data, 4096, 64, seed=0)
    build_tokenizer(paths.root / "tokenizer")
    for pupil in (
        Pupil(paths.teacher, TEACHER, replace(TEACHER_SFT, max_steps=200), None),
        Pupil(paths.student, STUDENT, replace(STUDENT_SFT, max_steps=150, seed=1), None),
    ):
        train(pupil, paths.root / "tokenizer", 0)
    return paths


@pytest.fixture(scope="session")
def main_ppo(models: Paths, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`main_ppo(name, recipe, steps, *overrides)` runs verl's command and returns the metrics of its steps.

    They are in a file of its own, or in `trainer.default_local_dir` if that is given: then with the steps before.
    `faults`: a new folder; the teacher's replicas then fail as `faults/sitecustomize.py` says. `submit`: options of
    `launch.ray_submit`, which then hands the run to a Ray head of its own.
    """
    root = tmp_path_factory.mktemp("runs")

    def run(
        name: str, recipe: str, steps: int, *extra: str, faults: Path | None = None, submit: Sequence[str] | None = None
    ) -> Steps:
        log, metrics = root / f"{name}.log", root / f"{name}.jsonl"
        folders = [Path(one.split("=")[1]) for one in extra if one.startswith("trainer.default_local_dir=")]
        arguments = [*overrides(models, recipe, steps, seed=0), *extra]
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
        environment = os.environ | ({} if folders else {"VERL_FILE_LOGGER_PATH": str(metrics)})
        for variable in ("WANDB_MODE", "WANDB_API_KEY"):
            environment.pop(variable, None)
        paths = [str(HERE), environment.get("PYTHONPATH", "")]
        if faults is not None:
            environment["OPD_FAULTS"] = str(faults)
            paths.append(str(HERE / "faults"))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": os.devnull}
        with log.open("w") as out, ExitStack() as stack:
            where = root
            if submit is not None:
                head = stack.enter_context(RayNodes(root / f"{name}_head", head_devices=4, environment=environment))
                own = ["--address", head.api, *submit, "--"]
                command, where = [sys.executable, "-m", "launch.ray_submit", *own, *arguments], ROOT
            done = subprocess.run(command, stdout=out, stderr=out, env=environment, cwd=where, timeout=SECONDS)
        assert done.returncode == 0, f"{' '.join(command)}\n{tail(log, 40)}"
        return metrics_of(folders[0]) if folders else list(read_steps(metrics))

    run.root = root  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="session")
def sampled(main_ppo: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Steps, Path]:
    """Twelve steps of recipe=opd with a checkpoint after every third, and where the checkpoints lie.

    Submitted through the Ray Jobs API, like the run after it.
    """
    folder = tmp_path_factory.mktemp("sampled")
    steps = main_ppo(
        "sampled", "opd", 12, *SAMPLED, "trainer.save_freq=3", f"trainer.default_local_dir={folder}",
        "trainer.logger=[console,wandb]", submit=["--working-dir", "."],
    )  # fmt: skip
    return steps, folder


@pytest.fixture(scope="session")
def after_grpo(
    sampled: tuple[Steps, Path], main_ppo: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Steps, Path]:
    """Two steps of recipe=grpo that go on from the third of `sampled`, and where the checkpoint after them lies."""
    folder = tmp_path_factory.mktemp("grpo")
    copy_checkpoint(sampled[1], 3, folder)
    steps = main_ppo(
        "grpo", "grpo", 5, *SMALL, "actor_rollout_ref.rollout.n=2", "actor_rollout_ref.actor.optim.lr=7e-5",
        "trainer.resume_mode=auto", f"trainer.default_local_dir={folder}", "trainer.logger=[console,wandb]",
        submit=["--working-dir", "none", "--no-check"],
    )  # fmt: skip
    assert steps[:3] == sampled[0][:3], "the lines of the steps before; those of its steps 4 to 12 are made again"
    return steps[3:], folder


def copy_checkpoint(source: Path, step: int, to: Path) -> None:
    """Puts a run where it was killed, with this newest checkpoint, for `trainer.resume_mode=auto` to go on from."""
    shutil.copytree(source / f"global_step_{step}", to / f"global_step_{step}")
    for kept in ("metrics.jsonl", "wandb_run_id"):
        shutil.copy(source / kept, to / kept)
    (to / "latest_checkpointed_iteration.txt").write_text(str(step))


def metrics_of(folder: Path) -> Steps:
    """The steps that the run in this `trainer.default_local_dir` has logged, over all attempts."""
    return logged(folder)


def updates(checkpoint: Path) -> set[int]:
    """How often Adam has updated the actor's parameters."""
    optimizer = torch.load(checkpoint / "actor" / "optim_world_size_1_rank_0.pt", weights_only=False)
    return {int(state["step"]) for state in optimizer["state"].values()}


def dump(steps: Steps, key: str) -> str:
    """One metric of all steps, for a failure's message."""
    return json.dumps([round(step[key], 6) for step in steps])


def new_metrics(steps: Steps) -> set[str]:
    """The metrics that opd_verl added to verl's, as the documents name them: `opd/depth/<first>-<last>/reward`."""
    ours = {key for step in steps for key in step if "opd/" in key or "_s/teacher" in key or "_s/diagnostics" in key}
    return {next((name for name, pattern in PATTERNS.items() if pattern.fullmatch(key)), key) for key in ours}


def change(steps: Steps, key: str, over: int = 3) -> float:
    """Relative change of a metric from the mean of the first `over` steps to that of the last ones."""
    first, last = (sum(step[key] for step in part) / over for part in (steps[:over], steps[-over:]))
    print(f"{key}: {dump(steps, key)}")
    return (last - first) / abs(first)
