"""`launch.ray_submit`: jobs that it refuses, jobs that it hands to the cluster, how it follows and stops them.

On a real head: tests/e2e (`submit=`), tests/e2e/test_nodes.py.
"""

import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from launch import ray_submit
from launch.ray_submit import entrypoint, follow, parse, runtime_env, stop, submit, what_is_wrong

GOOD = ["recipe=opd", "trainer.default_local_dir=/shared/run"]
SECRET = {"WANDB_API_KEY": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("overrides", "env", "part"),
    [
        (["recipe=opd"], [], "trainer.default_local_dir (not set)"),
        (["recipe=opd", "trainer.default_local_dir=runs/x"], [], "trainer.default_local_dir (runs/x)"),
        ([*GOOD, "+a.b=0123456789abcdef"], [], "+a.b holds the value of WANDB_API_KEY"),
        (GOOD, ["HF_TOKEN=abc"], "--env HF_TOKEN"),
        (GOOD, ["NAME"], "NAME=VALUE is expected"),
    ],
)
def test_what_cannot_work_or_would_leak_is_refused(overrides: list[str], env: list[str], part: str) -> None:
    problem = what_is_wrong(overrides, env, SECRET)
    assert problem is not None and part in problem
    assert SECRET["WANDB_API_KEY"] not in problem


def test_a_good_job_is_not_refused() -> None:
    assert what_is_wrong(GOOD, ["NCCL_DEBUG=INFO"], SECRET) is None
    assert what_is_wrong(["recipe=opd", "trainer.default_local_dir='/shared/a run'"], [], SECRET) is None


def test_overrides_reach_the_nodes_unchanged() -> None:
    awkward = [*GOOD, "opd.tokens.masks=[a, b]", "data.train_files='/a b/$HOME.parquet'"]
    command = entrypoint(awkward, check=True)
    assert shlex.split(command.split(" && ")[1]) == ["python", "-m", "opd_verl.nodes", *awkward]
    assert shlex.split(command.split(" && ")[2]) == ["exec", "python", "-m", "verl.trainer.main_ppo", *awkward]
    assert "opd_verl.nodes" not in entrypoint(awkward, check=False)


def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_submit, "NEEDED", ("json", "no_such_package"))
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", entrypoint(GOOD, True)], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert f"{tmp_path}/python of the cluster lacks: no_such_package; activate" in done.stdout


def test_code_that_travels_is_registered_by_name() -> None:
    assert runtime_env("none", ["A=b=c"]) == {"env_vars": {"A": "b=c"}}
    travelling = runtime_env(".", [])
    assert travelling["working_dir"] == "." and ".git" in travelling["excludes"]
    assert travelling["env_vars"] == {"VERL_USE_EXTERNAL_MODULES": "opd_verl.plugin"}


def test_options_come_before_two_dashes() -> None:
    options = parse(["--working-dir", "none", "--no-check", "--", *GOOD])
    assert (options.overrides, options.working_dir, options.no_check) == (GOOD, "none", True)
    with pytest.raises(SystemExit):
        parse(["--", "recipe=opd"])


class Cluster:
    """The part of Ray's client that is used: a job that says one thing after the other, and connections that break."""

    def __init__(self, pieces: list[list[str]], refusals: list[Exception] | None = None) -> None:
        self.pieces, self.refusals, self.stopped = pieces, refusals or [], False

    def submit_job(self, **job: Any) -> str:
        if self.refusals:
            raise self.refusals.pop(0)
        return job["submission_id"]

    def get_job_status(self, job: str) -> JobStatus:
        if self.stopped:
            return JobStatus.STOPPED
        return JobStatus.RUNNING if self.pieces else JobStatus.SUCCEEDED

    def stop_job(self, job: str) -> None:
        self.stopped = True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in self.pieces.pop(0):
            if text == "broken":
                raise ConnectionError("websocket closed")
            yield text


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_submit, "POLL_SECONDS", 0.0)


def test_a_log_that_breaks_off_is_taken_up_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray sends it from its beginning each time."""
    assert follow(Cluster([["one ", "two ", "broken"], ["one ", "two th", "ree"]]), "job") is JobStatus.SUCCEEDED
    assert capsys.readouterr().out == "one two three"


def test_a_stopped_job_is_waited_for() -> None:
    assert stop(Cluster([["endless"]]), "job") is JobStatus.STOPPED


def test_a_head_without_an_agent_yet_is_asked_again_and_other_refusals_end_it() -> None:
    young = Cluster([], [RuntimeError("Request failed with status code 500: No available agent to submit job")])
    assert submit(young, entrypoint="true", submission_id="x") == "x"
    with pytest.raises(SystemExit, match="already exists"):
        submit(Cluster([], [RuntimeError("Job x already exists")]), entrypoint="true", submission_id="x")
