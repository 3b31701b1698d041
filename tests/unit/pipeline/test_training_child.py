"""A training as a child process: its steps, its end, and its death with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from opd_verl.pipeline.training_child import run_child


def test_a_failed_training_ends_with_its_log(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "print('the cause'); raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"the cause(.|\n)*stopped with code 3; the whole log: .*a\.log"):
        run_child(line, tmp_path / "a.log", tmp_path / "m.jsonl", "a")


CHILD = """
import sys, time
from pathlib import Path
from opd_verl.pipeline.training_child import run_child

folder = Path(sys.argv[1])
work = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
run_child([sys.executable, "-c", work], folder / "log", folder / "metrics", "a")
"""


def test_a_training_dies_with_the_pipeline(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    child = int((tmp_path / "pid").read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(child))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
