"""The record of a run: wandb's id, group and mode, metrics.jsonl, and no secret in the config."""

import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env.runtime_env import _merge_runtime_env
from recipes_harness import clean_env, compose_ppo

from opd_verl.config.errors import ConfigError
from opd_verl.tracking.callback import FILE_LOGGER, RunTracking
from opd_verl.tracking.secret_values import refuse_secrets
from opd_verl.tracking.wandb_run import RUN_ID, group

SECRET = "0123456789abcdef0123456789abcdef01234567"
OURS = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_MODE", "WANDB_DIR", *FILE_LOGGER)
ENV_VARS = "ray_kwargs.ray_init.runtime_env.env_vars"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's wandb login, and every variable that the callback writes is put back after the test."""
    monkeypatch.setenv("NETRC", os.devnull)
    for name in (*OURS, "WANDB_API_KEY", "WANDB_RESUME_FROM"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)


def started(folder: Path, *overrides: str, recipe: str = "opd", logger: str = "[console,wandb]") -> DictConfig:
    """The config that verl is given when a run with this folder starts."""
    where = [f"recipe={recipe}", f"trainer.default_local_dir={folder}", f"trainer.logger={logger}"]
    config = deepcopy(compose_ppo(*where, *overrides, with_hydra=True))
    callback = RunTracking()
    callback.on_run_start(config)
    callback.on_job_start(config)
    for name in OURS:  # of this process; the next run starts in a new one
        os.environ.pop(name, None)
    return config


def env_vars(config: DictConfig) -> dict[str, Any]:
    actual: Any = OmegaConf.to_container(OmegaConf.select(config, ENV_VARS))
    return actual


def save_checkpoint(folder: Path, step: int) -> None:
    (folder / f"global_step_{step}").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


@pytest.mark.parametrize("recipe", ["opd", "grpo"])
def test_a_run_is_told_where_it_logs(recipe: str, tmp_path: Path) -> None:
    config = started(tmp_path, "trainer.experiment_name=mine-seed3", recipe=recipe)
    variables = env_vars(config)
    assert re.fullmatch("[0-9a-f]{8}", variables.pop("WANDB_RUN_ID")) and variables == {
        "WANDB_RESUME": "allow",
        "WANDB_RUN_GROUP": "mine",
        "WANDB_DIR": str(tmp_path),
        "WANDB_JOB_TYPE": recipe,
        "WANDB_MODE": "offline",
        "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl"),
    }
    assert list(config.trainer.logger) == ["console", "wandb", "file"]


def test_without_wandb_there_is_only_the_file(tmp_path: Path) -> None:
    config = started(tmp_path, logger="console")
    assert env_vars(config) == {"VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl")}
    assert list(config.trainer.logger) == ["console", "file"] and not (tmp_path / RUN_ID).exists()


def run_id(config: DictConfig) -> str:
    return env_vars(config)["WANDB_RUN_ID"]


def test_the_same_command_after_a_kill_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    killed_early = run_id(started(tmp_path))
    first = run_id(started(tmp_path))
    assert first != killed_early, "without a checkpoint it begins at step 1, which wandb has already"
    save_checkpoint(tmp_path, 3)
    assert run_id(started(tmp_path)) == first
    save_checkpoint(tmp_path, 6)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")  # killed while verl wrote it
    assert run_id(started(tmp_path)) == first
    newest, older = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_6"), 3
    assert run_id(started(tmp_path, *newest)) == first
    assert run_id(started(tmp_path, newest[0], newest[1].replace("_6", f"_{older}"))) != first
    assert run_id(started(tmp_path, "trainer.resume_mode=disable")) != first


def test_a_branch_of_another_runs_checkpoint_is_a_run_of_its_own(tmp_path: Path) -> None:
    first, branch = tmp_path / "first", tmp_path / "branch"
    identifier = run_id(started(first))
    save_checkpoint(first, 3)
    path = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={first}/global_step_3")
    assert run_id(started(branch, *path)) != identifier and run_id(started(first)) == identifier


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: f"own-{name}" for name in OURS}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert env_vars(started(tmp_path)) == own and not (tmp_path / RUN_ID).exists()
    in_config = [f"+{ENV_VARS}.{name}={value}-too" for name, value in own.items()]
    assert env_vars(started(tmp_path, *in_config)) == {name: f"{value}-too" for name, value in own.items()}


def test_what_a_submitted_job_was_given_is_not_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a run whose driver names a variable that `ray job submit` has named."""
    job = {"runtime_env": {"env_vars": {"WANDB_RUN_GROUP": "theirs"}}}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps(job))
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    variables = env_vars(started(tmp_path))
    assert "WANDB_RUN_GROUP" not in variables and variables["WANDB_RESUME"] == "allow"
    assert _merge_runtime_env(job["runtime_env"], {"env_vars": variables}) is not None


def test_a_rewound_run_is_left_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RESUME_FROM", "abc?_step=3")
    assert not {"WANDB_RUN_ID", "WANDB_RESUME"} & env_vars(started(tmp_path)).keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("distil-seed12", "distil"), ("distil_seed=1", "distil"), ("distil", "distil")),
        *(("reseed2", "reseed2"), ("-seed1", "-seed1"), ("distil-s2", "distil-s2")),
    ],
)
def test_seeds_are_one_group(name: str, expected: str) -> None:
    assert group(name) == expected


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET", "db_password"])
def test_a_secret_among_rays_variables_is_refused_and_not_shown(name: str) -> None:
    config = compose_ppo("recipe=grpo", f"+{ENV_VARS}.{name}=hidden")
    with pytest.raises(ConfigError, match=rf"env_vars\.{name}='\*\*\*'.*Remedy: export it on the nodes") as error:
        refuse_secrets(config, {})
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        *(f"trainer.project_name=x{SECRET}", "trainer.project_name=${oc.env:MY_TOKEN}"),
        *(f"+data.lists=[1,[{SECRET}]]", f"+hydra.job.env_set.WANDB_API_KEY={SECRET}"),
    ],
)
def test_a_secret_of_the_environment_may_be_nowhere(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    config = compose_ppo("recipe=opd", override, with_hydra=True)
    with pytest.raises(ConfigError, match=r"\*\*\*") as error:
        refuse_secrets(config, {"MY_TOKEN": SECRET})
    assert SECRET not in str(error.value) and error.value.key.startswith(override.strip("+").split("=")[0])


def test_what_is_no_secret_is_accepted() -> None:
    config = compose_ppo("recipe=opd", f"+{ENV_VARS}.NCCL_DEBUG=INFO", "trainer.project_name=EMPTY")
    refuse_secrets(config, {"OPENAI_API_KEY": "EMPTY", "PATH": "EMPTY", "HF_TOKEN": SECRET, "A_KEY": ""})


APP = """
import hydra
from omegaconf import OmegaConf
@hydra.main(version_base=None)
def main(config): print(OmegaConf.to_yaml(config))
main()
"""
ROOT = [
    "+trainer={logger:console,default_local_dir:checkpoints,resume_mode:auto}",
    "+ray_kwargs={ray_init:{runtime_env:{}}}",
]
CALLBACK = "+hydra.callbacks.run_tracking._target_=opd_verl.tracking.callback.RunTracking"


def run_app(folder: Path, *overrides: str) -> str:
    """The output of a Hydra program with our callback; its config has just the keys that the callback reads."""
    command = [sys.executable, "-c", APP, *ROOT, CALLBACK, *overrides]
    done = subprocess.run(command, cwd=folder, env=clean_env(), capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


def test_what_the_callback_changes_reaches_the_program(tmp_path: Path) -> None:
    """Not so what a callback changes when the job starts: by then Hydra has copied the config."""
    out = run_app(tmp_path)
    assert f"VERL_FILE_LOGGER_PATH: {tmp_path}/checkpoints/metrics.jsonl" in out and "- file" in out
    assert (tmp_path / "checkpoints").is_dir()


def test_a_refused_secret_reaches_neither_the_terminal_nor_hydras_files(tmp_path: Path) -> None:
    out = run_app(tmp_path, f"+{ENV_VARS}.WANDB_API_KEY={SECRET}")
    assert "Remedy: export it on the nodes" in out and SECRET not in out and not list(tmp_path.iterdir())


WANDB = """
import sys, wandb
wandb.init(project="project", name="name", config={"trainer": {}})  # as verl does
for step in map(int, sys.argv[1:]):
    wandb.log({"x": step}, step=step)
wandb.finish()
"""


def test_two_attempts_are_one_run_in_wandbs_own_offline_files(tmp_path: Path) -> None:
    ids = []
    for steps, folder in ((["1", "2"], None), (["2", "3"], 1)):
        if folder:
            save_checkpoint(tmp_path, folder)
        environment = {name: str(value) for name, value in env_vars(started(tmp_path)).items()}
        command = [sys.executable, "-c", WANDB, *steps]
        subprocess.run(command, cwd=tmp_path, env=clean_env(**environment), check=True, capture_output=True)
        ids.append(environment["WANDB_RUN_ID"])
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(set(ids)) == 1 and [file.stem for file in files] == [f"run-{ids[0]}"] * 2
    runs = [read_run(file) for file in files]
    assert [(run.run_id, run.run_group, run.job_type) for run in runs] == [(ids[0], "opd", "opd")] * 2


def read_run(file: Path) -> Any:
    """The run's own record in a file of wandb's: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, start = file.read_bytes(), 7
    while start < len(content):
        length = int.from_bytes(content[start + 4 : start + 6], "little")
        record = Record.FromString(content[start + 7 : start + 7 + length])
        if record.WhichOneof("record_type") == "run":
            return record.run
        start += 7 + length
    raise AssertionError(f"no run in {file}")
