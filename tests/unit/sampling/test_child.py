"""The child process: its task, its log, its failures, and its end with the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opd_verl.sampling.child import ChildError, run_child
from opd_verl.sampling.generate import GenerationTask, generate_in_child
from opd_verl.sampling.parts import ShardFolder
from opd_verl.sampling.settings import EngineSettings, SamplingSettings

WORKER = """
import os, sys, time
from pathlib import Path
from opd_verl.sampling.child import carry_out

def work(task, terminal):
    print("noise of a library")
    print("progress", file=terminal, flush=True)
    if task["do"] == "fail":
        raise ValueError("out of everything")
    Path(task["file"]).write_text(str(os.getpid()))
    if task["do"] == "sleep":
        time.sleep(600)

carry_out(work)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def test_work_is_done_elsewhere_and_quietly(worker: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_child("a_worker", {"do": "write", "file": str(worker / "done")}, worker / "logs" / "log")
    assert int((worker / "done").read_text()) != os.getpid()
    assert (worker / "logs" / "log").read_text() == "noise of a library\n"
    seen = capfd.readouterr()
    assert seen.err == "progress\n" and not seen.out


def test_a_failure_shows_the_end_of_the_log(worker: Path) -> None:
    with pytest.raises(ChildError, match=r"(?s)out of everything.*a_worker stopped with code 1.*the whole log: .*log"):
        run_child("a_worker", {"do": "fail"}, worker / "log")


def test_a_child_dies_with_its_parent(worker: Path) -> None:
    started, log = worker / "started", worker / "log"
    task = {"do": "sleep", "file": str(started)}
    code = "from pathlib import Path; from opd_verl.sampling.child import run_child; "
    code += f"run_child('a_worker', {task}, Path({str(log)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(started.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_child_is_started_for_nothing(tmp_path: Path) -> None:
    work = GenerationTask(
        "nowhere", SamplingSettings(), EngineSettings(), 5, [ShardFolder(tmp_path, 0)], tmp_path / "log"
    )
    generate_in_child(work)
    assert not (tmp_path / "log").exists()
