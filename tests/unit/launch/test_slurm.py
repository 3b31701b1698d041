"""launch/slurm/opd.sbatch on real Ray. The folder slurm stands in for Slurm's srun, scontrol and squeue alone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT
from ray.util import get_node_ip_address

from launch.slurm.wait_nodes import wait_for

STANDINS = Path(__file__).parent / "slurm"
SECRET = "secret-of-the-shell"


def free_port() -> int:
    with socket.socket() as item:
        item.bind(("", 0))
        return item.getsockname()[1]


def venv(folder: Path) -> str:
    """An environment whose main_ppo says where it runs and waits; the rest is the real python."""
    python = folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    says = "job in $PWD, secret of ${#HF_TOKEN} characters, ROCm ${ROCR_VISIBLE_DEVICES-unset}, overrides $*"
    job = f'[ "$2" != verl.trainer.main_ppo ] || {{ echo "{says}"; exec sleep 1000; }}'
    python.write_text(f'#!/bin/sh\n{job}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python.parents[1])


def environment(folder: Path, nodes: str, **more: str) -> dict[str, str]:
    """Slurm's variables and the submitting shell's on nodes of 8 GPUs and one core (Ray starts a process for each)."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OPD_", "RAY_"))}
    count = len(nodes.split(","))
    slurm = {"SLURM_JOB_ID": f"{os.getpid()}", "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_NUM_NODES": f"{count}"}
    slurm |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    standin = {"STANDIN_REQUEUED": str(folder / "requeued"), "STANDIN_STATE": "RUNNING"}
    ours = {"OPD_VENV": venv(folder), "OPD_SUBMIT": "python -m launch.ray_submit --no-check", "HF_TOKEN": SECRET}
    ours |= {
        "OPD_HEAD_IP": get_node_ip_address(),
        "OPD_RAY_PORT": f"{free_port()}",
        "OPD_DASHBOARD_PORT": f"{free_port()}",
    }
    path = f"{STANDINS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return inherited | slurm | standin | ours | {"PATH": path, "PYTHONPATH": str(ROOT)} | more


def spooled(folder: Path) -> Path:
    """Slurm runs a copy of the script, from a folder of its own."""
    copy = folder / "slurm_script"
    copy.write_bytes((ROOT / "launch/slurm/opd.sbatch").read_bytes())
    return copy


def start(folder: Path, *overrides: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("wb") as log:
        command = ["bash", str(spooled(folder)), *overrides]
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)


def left_behind(job: str) -> list[str]:
    """Processes that belong to the job, by its folder for Ray on their command lines."""
    lines = [" ".join(item.info["cmdline"] or []) for item in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"/tmp/opd-{job}-" in line]


def test_the_job_runs_on_all_nodes_and_at_the_time_limit_it_is_stopped_and_requeued(tmp_path: Path) -> None:
    env = environment(tmp_path, "node1,node2")
    run = start(tmp_path, "recipe=opd", "cluster=2x8", "opd.teacher.path=/a b", env=env)
    log = tmp_path / "log"
    while run.poll() is None and "overrides -m" not in log.read_text():
        time.sleep(0.5)
    assert "2 nodes joined" in log.read_text() and left_behind(env["SLURM_JOB_ID"]), log.read_text()
    assert f"job in {ROOT}, secret of {len(SECRET)} characters, ROCm unset, overrides" in log.read_text()
    folder = f"trainer.default_local_dir={ROOT}/runs/slurm-{env['SLURM_JOB_ID']}"
    assert f"trainer.save_freq=20 {folder} recipe=opd cluster=2x8 opd.teacher.path=/a b\n" in log.read_text()
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 130, log.read_text()
    assert ": stopped\n" in log.read_text()
    assert (tmp_path / "requeued").read_text().split() == [env["SLURM_JOB_ID"]]
    assert left_behind(env["SLURM_JOB_ID"]) == []
    assert SECRET not in log.read_text()
    shutil.rmtree(f"/tmp/opd-{env['SLURM_JOB_ID']}-0")


@pytest.mark.parametrize(("seconds", "state", "status"), [("2", "RUNNING", 1), ("60", "COMPLETING", 143)])
def test_absent_nodes_are_named_and_a_cancelled_job_stays_cancelled(
    tmp_path: Path, seconds: str, state: str, status: int
) -> None:
    more = {"STANDIN_ABSENT": "node1,node2", "STANDIN_STATE": state, "OPD_JOIN_S": seconds}
    env = environment(tmp_path, "node1,node2", **more)
    run = start(tmp_path, "cluster=2x8", env=env)
    if status == 143:
        while run.poll() is None and "start 1" not in (tmp_path / "log").read_text():
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
    assert run.wait(60) == status
    log = (tmp_path / "log").read_text()
    named = "0 of 2 nodes joined" in log and "missing: node1 node2. Their messages are above" in log
    assert named == (status == 1) and ("Slurm has the job as COMPLETING" in log) == (status == 143)
    assert not (tmp_path / "requeued").exists()


REFUSED = {
    "other size": (["cluster=4x8"], {}, ["cluster=4x8", "Slurm gave 2 nodes of 8 GPUs", "--nodes=4", "cluster=2x8"]),
    "other GPUs": (["cluster=2x4"], {}, ["cluster=2x4", "--gpus-per-node=4"]),
    "no cluster": (["recipe=opd"], {}, ["add cluster=2x8"]),
    "no GPUs": (["cluster=2x8"], {"SLURM_GPUS_ON_NODE": ""}, ["SLURM_GPUS_ON_NODE", "--gpus-per-node=8"]),
    "no checkout": (["cluster=2x8"], {"SLURM_SUBMIT_DIR": "/tmp"}, ["/tmp is no checkout", "OPD_HOME"]),
    "no environment": (["cluster=2x8"], {"OPD_VENV": "/none"}, ["OPD_VENV=/none", "has no bin/python"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_ray_starts(case: str, tmp_path: Path) -> None:
    overrides, change, words = REFUSED[case]
    env = environment(tmp_path, "node1,node2", **change)
    run = start(tmp_path, *overrides, env=env)
    assert run.wait(20) == 2
    log = (tmp_path / "log").read_text()
    assert all(word in log for word in words) and "Ray at" not in log, log


@pytest.mark.parametrize("overrides", [["cluster=mine"], ["trainer.nnodes=2"]])
def test_a_size_that_cannot_be_told_is_not_refused(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "setup").write_text("echo set up with $NOT_SET by $0")
    more = {"STANDIN_ABSENT": "node1,node2", "OPD_JOIN_S": "0", "OPD_SETUP": str(tmp_path / "setup")}
    env = environment(tmp_path, "node1,node2", **more)
    assert start(tmp_path, *overrides, env=env).wait(30) == 1
    assert "set up with" in (log := (tmp_path / "log").read_text()) and "0 of 2 nodes joined" in log


def test_the_head_is_asked_for_its_address(tmp_path: Path) -> None:
    head = get_node_ip_address()
    env = environment(tmp_path, "node1,node2", STANDIN_ABSENT="node2", OPD_HEAD_IP="")
    getent = Path(env["OPD_VENV"]) / "bin" / "getent"
    getent.write_text(
        f"#!/bin/sh\n[ $SLURMD_NODENAME:$2 = node1:node1 ] || exit 1; echo 127.0.1.1; echo {head} STREAM node1"
    )
    getent.chmod(0o755)
    with socket.create_server(("", int(env["OPD_RAY_PORT"]))):
        assert start(tmp_path, "cluster=2x8", env=env).wait(60) != 0
    assert f"Ray at http://{head}:" in (tmp_path / "log").read_text()


def test_a_port_of_another_ray_is_refused(tmp_path: Path) -> None:
    env = environment(tmp_path, "node1,node2", STANDIN_ABSENT="node2", OPD_JOIN_S="60")
    with socket.create_server(("", int(env["OPD_RAY_PORT"]))):
        assert start(tmp_path, "cluster=2x8", env=env).wait(60) != 0
    log = (tmp_path / "log").read_text()
    assert f"node1: port {env['OPD_RAY_PORT']} of" in log and "set OPD_RAY_PORT" in log and "a Ray node ended" in log


ADDRESSES = [
    ("127.0.1.1", "fd00::2 10.0.0.7 10.1.0.7", "10.0.0.7"),
    ("10.0.0.9  STREAM node1", "10.1.0.7", "10.0.0.9"),
    ("", "fd00::2", None),
]


@pytest.mark.parametrize(("resolved", "own", "address"), ADDRESSES)
def test_the_heads_address_is_ipv4_and_not_its_loopback(
    resolved: str, own: str, address: str | None, tmp_path: Path
) -> None:
    for name, answer in (("getent", resolved), ("hostname", own)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(ROOT / "launch/slurm/head_ip.sh"), "node1"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert (run.stdout.strip() or None) == address and run.returncode == (address is None)
    assert address or "set OPD_HEAD_IP" in run.stderr


def test_waiting_ends_when_the_last_node_is_there() -> None:
    seen = iter([set[str](), {"a"}, {"a", "b"}])
    assert wait_for(["a", "b"], lambda: next(seen), seconds=60) == []
    assert wait_for(["a", "b"], lambda: {"b"}, seconds=0) == ["a"]
