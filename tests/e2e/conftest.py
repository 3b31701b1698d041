"""The quickstart's models and the real `main_ppo` as a child process. All end-to-end tests share them.

Two kinds of assertions must hold on every machine, since float32 sums in another order on another processor:

* The outcome of a training: its comment holds the measured range over seeds and over other arithmetic
  (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`, threads), and the bound lies more than 3.3 standard deviations from the
  mean (below 1 in 2,000). `recipes/LOG.md`, 2026-11-28, has the study.
* The equality of two runs (`SAME`): both run on the same machine. Its docstring says what may differ, and by how much.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from ray_nodes import RayNodes
from transformers import AutoTokenizer

from opd_verl.metrics.names import CONDITIONAL
from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.evaluate import distance, sample
from opd_verl.quickstart.models import load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import eval_problems, prepare
from opd_verl.tracking.metrics_file import read_steps
from opd_verl.tracking.metrics_log import logged
from opd_verl.utils.files import tail

Steps = list[dict[str, float]]
Run = Callable[..., Steps]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 600
SAMPLED_STEPS = 9
SMALL = (
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=constant",  # a shorter run is the beginning of a longer one
)
SAMPLED = (*SMALL, "actor_rollout_ref.actor.optim.lr=1e-4")
"""The sampled token's r_t is noisy: a third of the exact objective's learning rate."""
ALONE = "opd.teacher.max_tokens_per_batch=1"
"""The teacher scores each rollout in a forward pass of its own, for runs that are compared with one another.

Its batches hold whatever has arrived, and a rollout's r_t differs by float32's 1e-7 from batch to batch. Adam turns
this into percents within a few steps: a next token drawn from nearly the same distribution is another token once in a
while, and another response follows.
"""
SAME: dict[str, float] = {"rel": 1e-4, "abs": 1e-7}
"""Tolerance between two runs of one seed on one machine, the teacher's batches being the same (`ALONE`).

MEASURED
"""
COMPARED = ("actor/loss", "actor/grad_norm", "opd/reverse_kl", "opd/reward_mean", "critic/score/mean")
CONDITIONAL_NAMES = set(CONDITIONAL)
PATTERNS = {name: re.compile(re.sub(r"<[a-z]+>", r"\\w+", name)) for name in CONDITIONAL if "<" in name}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all. test_quickstart.py comes first: its command starts from nothing, and the others share its models."""
    for item in items:
        item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.path.stem != "test_quickstart")


@pytest.fixture(scope="session")
def quickstart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`--out` of the quickstart: a path with a space, as users have them."""
    return tmp_path_factory.mktemp("quickstart") / "my runs"


@pytest.fixture(scope="session")
def models(quickstart_folder: Path) -> Paths:
    """The quickstart's teacher, student and data of seed 0; made here where test_quickstart.py has not run before."""
    paths = Paths(quickstart_folder / "seed0")
    prepare(paths, seed=0)
    return paths


@pytest.fixture(scope="session")
def main_ppo(models: Paths, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`main_ppo(name, recipe, steps, *overrides)` runs verl's command and returns the metrics of its steps.

    The metrics go to a file of their own, or to `trainer.default_local_dir` where it is given: then the result has the
    steps of earlier attempts too. `faults`: a new folder; the teacher's replicas then fail as
    `faults/sitecustomize.py` says. `submit`: options of `launch.ray_submit`, which then hands the run to a Ray head
    that runs for it alone.
    """
    root = tmp_path_factory.mktemp("runs")

    def run(
        name: str, recipe: str, steps: int, *extra: str, faults: Path | None = None, submit: Sequence[str] | None = None
    ) -> Steps:
        log, metrics = root / f"{name}.log", root / f"{name}.jsonl"
        prefix = "trainer.default_local_dir="
        folders = [Path(setting.removeprefix(prefix)) for setting in extra if setting.startswith(prefix)]
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
    """Nine steps of recipe=opd, submitted through the Ray Jobs API, and the folder of its checkpoints (3, 6 and 9)."""
    folder = tmp_path_factory.mktemp("sampled")
    steps = main_ppo(
        "sampled", "opd", SAMPLED_STEPS, *SAMPLED, "opd.diagnostics.every=4", "opd.samples.every=6",
        ALONE, "trainer.save_freq=3", f"trainer.default_local_dir={folder}", "trainer.logger=[console,wandb]",
        submit=["--working-dir", "."],
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
    assert steps[:3] == sampled[0][:3], "the lines of the first three steps; the later ones are made again"
    return steps[3:], folder


def copy_checkpoint(source: Path, step: int, to: Path) -> None:
    """Puts a run where it was killed, with this newest checkpoint, for `trainer.resume_mode=auto` to go on from."""
    shutil.copytree(source / f"global_step_{step}", to / f"global_step_{step}")
    for kept in ("metrics.jsonl", "wandb_run_id"):
        shutil.copy(source / kept, to / kept)
    (to / "latest_checkpointed_iteration.txt").write_text(str(step))


def metrics_of(folder: Path) -> Steps:
    """The logged steps of the run in this `trainer.default_local_dir`, over all attempts."""
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


def exact_reverse_kl(student: Path, models: Paths) -> float:
    """KL(student || teacher) over the whole vocabulary on the student's own responses, nats per token.

    200 held-out problems, 4 responses each, about 27,000 tokens. The mean of one training step's sampled r_t (2,000
    tokens) is known to 15% only, this to 2%.
    """
    tokenizer = AutoTokenizer.from_pretrained(models.teacher)
    model, teacher = load_model(student), load_model(models.teacher)
    return distance(model, teacher, sample(model, tokenizer, eval_problems(), samples=4), len(tokenizer)).reverse_kl
