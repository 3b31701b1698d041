"""The real command: vLLM, tiny trained models, two external teachers and the student behind its own solution."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from opd_verl.config.overrides import hydra_value
from opd_verl.quickstart.paths import Paths

pytestmark = pytest.mark.by_hand
SECONDS = 900


def command(models: Paths, out: Path) -> list[str]:
    """The student succeeds on a quarter of its rollouts, so that most questions have both outcomes."""
    student, teacher = hydra_value(models.student), hydra_value(models.teacher)
    return [
        *(sys.executable, "-m", "opd_verl.alignment", f"student={student}", f"out={out}"),
        f"teachers={{better: {teacher}, same: {student}}}",
        *("contexts.names=[1c]", f"prompts={hydra_value(models.data / 'heldout.parquet')}", "limit=6", "rollouts=40"),
        *("targets.enough=20", "targets.by_gradient=2", "targets.by_difference=1", "significant=10", "max_tokens=64"),
        *("targets.first_window=16", "engine.dtype=float32"),
    ]


def results(out: Path) -> str:
    """All numbers of all nodes, as text."""
    return json.dumps(pq.read_table(out / "nodes.parquet").to_pylist())


def test_a_whole_run_and_one_that_was_killed_give_the_same(models: Paths, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(models, whole), capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "Teachers by mean cosine" in done.stdout and (whole / "tree.png").exists()
    child = subprocess.Popen(
        command(models, killed),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    end = time.monotonic() + SECONDS
    while not list(killed.glob("targeted/*/0/window-0.done.json")):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    again = subprocess.run(command(models, killed), capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert results(killed) == results(whole)
    teachers = json.loads((whole / "alignment.json").read_text())["objectives"]["gkd"]["teachers"]
    names = {teacher["name"] for teacher in teachers}
    assert names <= {"better", "same", "1c"} and "better" in names
    rows = pq.read_table(whole / "nodes.parquet").to_pylist()
    assert max(row["kl"] for row in rows if row["teacher"] == "same") < 1e-6, "the student itself as teacher"
