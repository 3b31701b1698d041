"""The real `python -m opd_verl.probe` on trained models: real vLLM, real judge, real forward passes, and a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from opd_verl.config.overrides import hydra_value
from opd_verl.metrics.meanings import MEANINGS
from opd_verl.quickstart.paths import Paths

pytestmark = pytest.mark.by_hand

SECONDS = 400


def command(models: Paths, out: str) -> list[str]:
    """Two teachers for the quickstart's student: its own, and the student itself, which has nothing to teach."""
    return [
        *(sys.executable, "-m", "opd_verl.probe"),
        f"student={hydra_value(models.student)}",
        f"teacher={{same:{hydra_value(models.student)},teacher:{hydra_value(models.teacher)}}}",
        f"prompts={hydra_value(models.data / 'train.parquet')}",
        f"out={out}",
        *("rollouts=48", "n=2", "max_tokens=64", "continuation=[0.5]", "prompts_per_shard=24"),
    ]


def probe(models: Paths, cwd: Path, out: str) -> str:
    done = subprocess.run(command(models, out), cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def probed(models: Paths, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an undisturbed probe, and what it printed."""
    cwd = tmp_path_factory.mktemp("probe")
    return cwd / "runs", probe(models, cwd, "runs")


def pairs(folder: Path) -> list[dict[str, Any]]:
    """The pairs of student and teacher in the results file."""
    return json.loads((folder / "probe.json").read_text())["pairs"]


def test_the_teacher_that_knows_more_comes_first(probed: tuple[Path, str]) -> None:
    best, same = pairs(probed[0])
    assert (best["teacher"], same["teacher"]) == ("teacher", "same")
    assert best["verdict"]["verdict"] == "gain expected" and same["verdict"]["verdict"] == "no headroom"
    assert best["measurements"]["headroom"]["low"] > 0.1 and set(best["measurements"]) == set(MEANINGS)
    assert "teacher: gain expected" in probed[1]


def test_a_student_agrees_with_itself(probed: tuple[Path, str]) -> None:
    """q = p: r_t is 0 up to float32's rounding, the top-k are the same, and so are the entropies."""
    measured = {name: estimate["value"] for name, estimate in pairs(probed[0])[1]["measurements"].items()}
    assert abs(measured["reverse_kl"]) < 1e-5 and measured["rho"] == pytest.approx(1.0, abs=1e-4)
    assert measured["overlap_ratio"] > 0.999 and measured["fork_overlap"] > 0.99 and measured["entropy_gap"] < 1e-4
    assert measured["q3_force"] < 1e-5


def test_a_probe_that_is_killed_ends_with_the_same_numbers(models: Paths, probed: tuple[Path, str]) -> None:
    cwd = probed[0].parent
    with subprocess.Popen(
        command(models, "killed"), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        deadline = time.monotonic() + SECONDS
        while not (cwd / "killed" / "reading" / "before" / "before" / "shard-00000.parquet").exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(child.pid, signal.SIGKILL)
    probe(models, cwd, "killed")
    for name in ("probe.json", "tokens.json"):
        assert (cwd / "killed" / name).read_bytes() == (probed[0] / name).read_bytes()
