"""The quickstart's models and the real `main_ppo` as a child process. All end-to-end tests share them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e_runs import ALONE, SAMPLED, SAMPLED_STEPS, SMALL, Run, Steps, copy_checkpoint, metrics_of
from ray_nodes import RayNodes

from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import prepare
from opd_verl.tracking.metrics_file import read_steps
from opd_verl.utils.files import tail

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 600


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
