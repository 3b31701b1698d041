"""Several nodes for real: raylets with addresses of their own, jobs through the Jobs API, a node killed in the middle.

About eight minutes on two cores, too long for CI:    bash launch/test.sh tests/e2e/test_nodes.py
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_runs import COMPARED, SAME, SAMPLED, Steps, dump, metrics_of
from ray_nodes import RayNodes

from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.paths import Paths
from opd_verl.utils.files import tail

pytestmark = pytest.mark.by_hand

ROOT = Path(__file__).parents[2]
STEPS, SAVE, KILLED_AFTER = 6, 2, 3
STUDENTS, TEACHER, SPARE = ("127.0.0.2", "127.0.0.3"), "127.0.0.4", "127.0.0.5"
SECONDS = 900


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head without devices, two nodes for the student and one for the teacher."""
    with RayNodes(tmp_path_factory.mktemp("nodes")) as nodes:
        for address in (*STUDENTS, TEACHER):
            nodes.add(address)
        nodes.wait_for(4)
        yield nodes


def job(nodes: RayNodes, models: Paths, folder: Path, *extra: str) -> list[str]:
    """The command that submits the run: student on two nodes with one rank each, teacher on a third."""
    return [
        *(sys.executable, "-m", "launch.ray_submit", "--address", nodes.api, "--working-dir", "none", "--"),
        *overrides(models, "opd", STEPS, seed=0),
        *SAMPLED,
        "trainer.nnodes=2",
        "opd.teacher.early=false",
        f"trainer.save_freq={SAVE}",
        "trainer.resume_mode=auto",
        f"trainer.default_local_dir={folder}",
        *extra,
    ]


def submit(nodes: RayNodes, models: Paths, folder: Path, log: Path, *extra: str) -> int:
    """Runs the job to its end; the exit status."""
    with log.open("w") as out:
        command = job(nodes, models, folder, *extra)
        return subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, timeout=SECONDS).returncode


@pytest.fixture(scope="module")
def undisturbed(cluster: RayNodes, models: Paths, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The steps of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code = submit(cluster, models, folder / "run", folder / "log")
    assert code == 0, tail(folder / "log", 60)
    return metrics_of(folder / "run")


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Until the run has logged so many steps."""
    until = time.monotonic() + SECONDS
    while len(metrics_of(folder)) < step:
        assert process.poll() is None, "the job ended before"
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture(scope="module")
def killed_and_resumed(
    undisturbed: Steps, cluster: RayNodes, models: Paths, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, int, Steps]:
    """A second run. A node of the student is killed after the third step; the job is submitted again on another."""
    folder = tmp_path_factory.mktemp("killed")
    run = folder / "run"
    with (folder / "first.log").open("w") as out:
        first = subprocess.Popen(job(cluster, models, run), stdout=out, stderr=out, cwd=ROOT)
        wait_for_step(run, KILLED_AFTER, first)
        cluster.kill(STUDENTS[1])
        code = first.wait(SECONDS)
    cluster.add(SPARE)
    cluster.wait_for(4)
    again = submit(cluster, models, run, folder / "again.log")
    assert again == 0, tail(folder / "again.log", 60)
    return code, again, metrics_of(run)


def test_student_and_teacher_train_on_three_nodes(undisturbed: Steps) -> None:
    assert [step["step"] for step in undisturbed] == list(range(1, STEPS + 1))
    assert all(step["opd/teacher_missing_share"] == 0.0 for step in undisturbed)


def test_the_job_of_a_killed_node_fails(killed_and_resumed: tuple[int, int, Steps]) -> None:
    assert killed_and_resumed[0] == 1


def test_submitted_again_it_goes_on_from_the_checkpoint_and_gives_the_same_numbers(
    undisturbed: Steps, killed_and_resumed: tuple[int, int, Steps]
) -> None:
    """`opd.teacher.early=false` gives the teacher the same batches in both runs."""
    resumed = killed_and_resumed[2]
    assert [step["step"] for step in resumed] == list(range(1, STEPS + 1))
    for key in COMPARED:
        print(key, dump(undisturbed, key), dump(resumed, key))
        assert [step[key] for step in resumed] == pytest.approx([step[key] for step in undisturbed], **SAME), key
