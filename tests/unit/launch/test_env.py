"""launch/env.sh with a Python that installs nothing: what it makes, keeps, resumes and refuses."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT

# A Python whose `-m venv` copies itself and whose `-m pip install` only records that it ran, and waits if told to.
STUB = """#!/usr/bin/env bash
here=$(dirname "$0")
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/bin/has-pip";;
  "-m pip") [[ -e "$here/has-pip" ]] || exit 1
    [[ "$*" == *install* ]] || exit 0
    echo $$ >"$here/pid"; echo "$*" >>"$here/installed"; [[ -z "${STUB_WAIT:-}" ]] || sleep "$STUB_WAIT";;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder with spaces, and the stub beside it."""
    folder = tmp_path / "my (1) checkout"
    (folder / "launch").mkdir(parents=True)
    for name in ("setup.py", "launch/env.sh"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    return folder


def start(checkout: Path, **env: str) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if k != "OPD_VENV"} | {"PYTHON": str(checkout.parent / "stub")}
    return subprocess.Popen(
        ["bash", str(checkout / "launch/env.sh")],
        cwd=checkout.parent,
        env=environment | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def installs(venv: Path) -> int:
    return len((venv / "bin/installed").read_text().splitlines())


def test_installs_once_and_again_in_place_after_a_change(checkout: Path) -> None:
    venv = checkout.parent / "envs/my env"
    first = start(checkout, OPD_VENV="envs/my env/")
    assert "torch" in first.communicate()[0] and first.returncode == 0 and installs(venv) == 3
    again = start(checkout, OPD_VENV=str(venv))
    assert (again.communicate()[0], again.returncode, installs(venv)) == ("", 0, 3)
    (venv / "keep").touch()
    with (checkout / "setup.py").open("a") as file:
        file.write("\n")
    assert start(checkout, OPD_VENV=str(venv)).wait() == 0
    assert (venv / "keep").exists() and installs(venv) == 6


def test_refuses_a_folder_of_somebody_else(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/precious").touch()
    run = start(checkout)
    assert "did not make" in run.communicate()[0] and run.returncode == 1
    assert [path.name for path in (checkout / ".venv").iterdir()] == ["precious"]


def ends(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process is gone within that time; one that nobody has waited for yet (a zombie) is."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return not psutil.pid_exists(pid)


def test_stopping_ends_pip_and_the_next_call_goes_on(checkout: Path) -> None:
    run = start(checkout, STUB_WAIT="1000")
    while run.poll() is None and not (checkout / ".venv/bin/installed").exists():
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert "goes on from here" in run.communicate(timeout=20)[0]
    assert run.returncode == -signal.SIGTERM
    assert ends(int((checkout / ".venv/bin/pid").read_text()))
    assert start(checkout).wait() == 0 and installs(checkout / ".venv") == 4
