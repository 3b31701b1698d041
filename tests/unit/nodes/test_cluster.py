"""The command on a real Ray cluster: three raylets of this machine, a head without devices and two nodes with two."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from recipes_harness import clean_env
from tiny_models import save_tiny_qwen3

from opd_verl.cpu.selected import cpu_selected
from opd_verl.nodes.__main__ import main

pytestmark = pytest.mark.skipif(not cpu_selected(), reason="Ray's devices are made up here, and a GPU's are counted")
ROW = {"message": [{"role": "user", "content": "?"}], "answer": {"style": "rule", "ground_truth": "1"}}


@dataclass(frozen=True)
class Job:
    """The overrides of a run that works on the cluster, and where its files are."""

    root: Path
    cluster: Any

    def overrides(self, *changes: str) -> list[str]:
        paths = {
            "actor_rollout_ref.model.path": "student",
            "opd.teacher.path": "teacher",
            "data.train_files": "train.parquet",
            "data.val_files": "train.parquet",
            "trainer.default_local_dir": "run",
        }
        sizes = ["data.max_prompt_length=16", "data.max_response_length=64", "trainer.save_freq=5"]
        mini_batch = ["actor_rollout_ref.actor.ppo_mini_batch_size=36"]  # of 1, 2 and 3 devices per node
        trainer = ["trainer.device=cpu", "trainer.nnodes=2", "trainer.n_gpus_per_node=1", "trainer.logger=[console]"]
        files = [f"{key}={self.root / name}" for key, name in paths.items()]
        return ["recipe=opd", *trainer, *sizes, *mini_batch, *files, *changes]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    root = tmp_path_factory.mktemp("nodes")
    save_tiny_qwen3(root / "student")
    save_tiny_qwen3(root / "teacher", seed=1)
    table = {"prompt": [ROW["message"]], "data_source": ["d"], "reward_model": [ROW["answer"]]}
    pq.write_table(pa.table(table), root / "train.parquet")
    # Of its own, and short (sockets lie there): a `ray.init` of another process must not find this cluster.
    ray_folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", ray_folder)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            cluster.add_node(num_cpus=8, num_gpus=2)
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.shutdown()  # of other test files, which the command would take for its own
        yield Job(root, cluster)
        cluster.shutdown()
    shutil.rmtree(ray_folder, ignore_errors=True)


def test_the_command_shows_every_node_and_ends_with_0(job: Job) -> None:
    command = [sys.executable, "-m", "opd_verl.nodes", *job.overrides()]
    done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    heading, _, *nodes = [[cell.strip() for cell in row] for row in rows]
    assert heading[0] == "node" and len(nodes) == 3
    assert sorted(row[heading.index("free devices")] for row in nodes) == ["0 of 0", "2 of 2", "2 of 2"]
    for row in nodes:
        assert row[-5:] == ["shared", "2 of 2", "1 of 1", "2 of 2", "as here"]
    assert "nodes: 3, errors: 0, warnings: 0" in done.stdout and "…" not in done.stdout
    assert not (job.root / "run").exists(), "it leaves no trace"


def test_a_model_that_is_nowhere_ends_with_1_and_its_remedy(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job.overrides(f"opd.teacher.path={job.root}/nope")) == 1
    out = capsys.readouterr().out
    assert f"opd.teacher.path={job.root}/nope: no such model folder" in out
    assert "remedy: opd.teacher.path=/path/on/shared/storage" in out and "nodes: 3, errors: 1," in out


def test_too_few_devices_end_with_1_and_the_remedy(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job.overrides("trainer.n_gpus_per_node=3")) == 1
    out = capsys.readouterr().out
    assert (
        "2 x 3 for the trainer (trainer.nnodes x trainer.n_gpus_per_node) do not fit nodes with [2, 2, 0] free" in out
    )
    assert "remedy: lower trainer.n_gpus_per_node or opd.teacher.n_gpus_per_node" in out and "errors: 1," in out


def test_a_node_that_does_not_answer_is_a_row_of_its_own(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = job.cluster.list_all_nodes()
    raylet = last.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        assert main(["--timeout", "10", *job.overrides("trainer.nnodes=1")]) == 1
    finally:
        os.kill(raylet, signal.SIGCONT)
    out = capsys.readouterr().out
    assert "no answer within 10 s" in out and "ray start --address=FIRST:6379" in out
    assert out.count("as here") == 2 and "nodes: 3, errors: 1, warnings: 0" in out


def test_without_a_cluster_it_says_how_to_start_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert main(job.overrides()) == 1
    assert "no Ray cluster was started on this machine. Remedy: `ray start --head" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # nothing listens on the discard port
    assert main(job.overrides()) == 1
    assert "RAY_ADDRESS='127.0.0.1:9': no Ray cluster answers there" in capsys.readouterr().err
