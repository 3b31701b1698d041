"""launch/slurm/opd.sbatch on real Ray. tests/unit/slurm stands in for Slurm's srun, scontrol and squeue alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

from launch.slurm.wait_nodes import wait_for

ROOT, STANDINS = Path(__file__).parents[2], Path(__file__).parent / "slurm"
SECRET = "secret-of-the-shell"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def environment(folder: Path, nodes: str, **more: str) -> dict[str, str]:
    """What Slurm and the submitting shell give the script on nodes of 8 GPUs and 4 cores."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OPD_", "RAY_"))}
    count = len(nodes.split(","))
    slurm = {"SLURM_JOB_ID": f"{os.getpid()}", "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_NUM_NODES": f"{count}"}
    slurm |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(ROOT)}
    standin = {"STANDIN_REQUEUED": str(folder / "requeued"), "STANDIN_STATE": "RUNNING"}
    ours = {"OPD_VENV": sys.prefix, "OPD_SUBMIT": f"python {STANDINS / 'submit.py'}", "HF_TOKEN": SECRET}
    ours |= {"OPD_RAY_PORT": f"{free_port()}", "OPD_DASHBOARD_PORT": f"{free_port()}"}
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
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"/tmp/opd-{job}-" in line]


def test_the_job_runs_on_all_nodes_and_at_the_time_limit_it_is_stopped_and_requeued(tmp_path: Path) -> None:
    env = environment(tmp_path, "node1,node2")
    run = start(tmp_path, "recipe=opd", "cluster=2x8", "opd.teacher.path=/a b", env=env)
    log = tmp_path / "log"
    while run.poll() is None and "submitted" not in log.read_text():
        time.sleep(0.5)
    assert "2 nodes joined" in log.read_text() and left_behind(env["SLURM_JOB_ID"]), log.read_text()
    assert f"job in {ROOT}\nit has the secret, ROCm is unset\n" in log.read_text()
    assert "['trainer.resume_mode=auto', 'trainer.save_freq=20', 'recipe=opd', 'cluster=2x8'," in log.read_text()
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 130, log.read_text()
    assert "the job is STOPPED" in log.read_text()
    assert (tmp_path / "requeued").read_text().split() == [env["SLURM_JOB_ID"]]
    assert left_behind(env["SLURM_JOB_ID"]) == []
    assert SECRET not in log.read_text()


def test_a_node_that_does_not_join_is_named_and_nothing_stays(tmp_path: Path) -> None:
    env = environment(tmp_path, "node1,node2", STANDIN_ABSENT="node2", OPD_JOIN_S="1")
    run = start(tmp_path, "cluster=2x8", env=env)
    assert run.wait(60) == 1
    log = (tmp_path / "log").read_text()
    assert "joined Ray at" in log and "missing: " in log and "node2. Look above" in log
    assert not (tmp_path / "requeued").exists() and left_behind(env["SLURM_JOB_ID"]) == []
