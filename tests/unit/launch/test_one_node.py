"""launch/one_node.sh with a `python` that writes down what it was asked for, and with the real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT

# A python that has what the launchers look for, and whose planner ends with the status that the test wants.
STUB = """#!/bin/sh
case "$2" in
  *find_spec*) exit "${STUB_HAS_VERL:-0}";;
  opd_verl.plan) echo "asked: $*"; exit "${STUB_PLAN:-0}";;
  *) echo "asked: $*";;
esac
"""


def run(
    folder: Path, *overrides: str, script: str = "launch/one_node.sh", **env: str
) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if key not in ("TRAIN", "VAL", "STUDENT", "TEACHER")}
    command = ["bash", str(ROOT / script), *overrides]
    return subprocess.run(command, cwd=folder, env=kept | env, capture_output=True, text=True)


@pytest.fixture
def venv(tmp_path: Path) -> str:
    """An environment with the stub."""
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    return str(python.parents[1])


def asked(done: "subprocess.CompletedProcess[str]") -> list[list[str]]:
    return [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("asked: ")]


def test_the_planner_is_asked_first_and_its_refusal_ends_the_run(venv: str, tmp_path: Path) -> None:
    fits = run(tmp_path, "recipe=opd", "cluster=1x8", OPD_VENV=venv, TEACHER="/t", TRAIN="a.parquet", DEVICE="h200")
    plan, training = asked(fits)
    assert (fits.returncode, plan[0], training[0]) == (0, "opd_verl.plan", "verl.trainer.main_ppo")
    assert plan[1:] == ["device=h200", *training[1:]] and training[-2:] == ["recipe=opd", "cluster=1x8"], (
        "the user's come last"
    )
    assert {"opd.teacher.path=/t", "data.train_files=a.parquet"} < set(training)
    assert not any("data.val_files" in word for word in training), "what is not given is left to verl"
    too_big = run(tmp_path, "recipe=opd", OPD_VENV=venv, STUB_PLAN="3")
    assert too_big.returncode == 3 and [words[0] for words in asked(too_big)] == ["opd_verl.plan"]
    unasked = run(tmp_path, "recipe=opd", OPD_VENV=venv, STUB_PLAN="3", OPD_PLAN="0")
    assert unasked.returncode == 0 and [words[0] for words in asked(unasked)] == ["verl.trainer.main_ppo"]


def test_an_environment_without_verl_is_refused(venv: str, tmp_path: Path) -> None:
    bare = run(tmp_path, OPD_VENV=venv, STUB_HAS_VERL="1")
    assert bare.returncode == 2 and asked(bare) == []
    assert f"{venv}/bin/python: verl and opd_verl are not installed there" in bare.stderr


def test_which_environment_it_takes(venv: str, tmp_path: Path) -> None:
    """The one asked for, the active one, the checkout's, that of PATH: each in the absence of the ones before it."""
    checkout = tmp_path / "checkout"
    (checkout / "launch").mkdir(parents=True)
    for name in ("one_node.sh", "python.sh"):
        (checkout / "launch" / name).write_bytes((ROOT / "launch" / name).read_bytes())
    none = {"OPD_VENV": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": "", "STUB_PLAN": "9"}
    on_path = {"PATH": f"{venv}/bin:{os.environ['PATH']}"}
    script = str(checkout / "launch/one_node.sh")
    for env in (on_path, on_path | {"VIRTUAL_ENV": venv}, {"OPD_VENV": venv, "VIRTUAL_ENV": "/other"}):
        assert run(tmp_path, script=script, **(none | env)).returncode == 9, env
    (checkout / ".venv").symlink_to(venv)
    assert run(tmp_path, script=script, **none).returncode == 9


@pytest.mark.parametrize("recipe", ["opd", "grpo"])
def test_the_recipes_scripts_go_through_it(recipe: str, venv: str, tmp_path: Path) -> None:
    script = f"recipes/{recipe}/run_qwen3_fsdp.sh"
    done = run(tmp_path, "trainer.save_freq=5", script=script, OPD_VENV=venv, TRAIN="a.parquet", VAL="b.parquet")
    training = asked(done)[-1]
    assert done.returncode == 0 and training[-1] == "trainer.save_freq=5", done.stderr
    assert {f"recipe={recipe}", "data.val_files=b.parquet"} < set(training)
    assert "actor_rollout_ref.model.path=Qwen/Qwen3-1.7B" in training


def test_verl_takes_the_settings_and_the_users_win(tmp_path: Path) -> None:
    env = {"OPD_VENV": sys.prefix, "OPD_PLAN": "0", "STUDENT": "/s", "VAL": "b.parquet", "LOGGER": "[console,wandb]"}
    done = run(tmp_path, "recipe=opd", "trainer.save_freq=5", "--cfg=job", "--package=trainer", **env)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout[done.stdout.index("# @package") :]
    trainer = yaml.safe_load(printed)
    assert (trainer["save_freq"], trainer["test_freq"], trainer["resume_mode"]) == (5, 20, "auto")
    assert trainer["logger"] == ["console", "wandb"]
