"""verl's configs as its commands see them, and a run of the real command."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import verl  # noqa: F401  (loads the plugin, which registers the slots `recipe` and `cluster` with Hydra)
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from places import ROOT

from opd_verl.cpu.selected import CPU_ENVIRONMENT

CONFIGS = ROOT / "hydra_configs"

RECIPES = sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))

OPD_RECIPES = [name for name in RECIPES if not name.startswith("grpo")]

SET_BY_IMPORT = (
    *("VERL_PLATFORM", "VERL_ENGINE_DEVICE", "VERL_USE_EXTERNAL_PLUGINS", "VERL_USE_EXTERNAL_MODULES"),
    *CPU_ENVIRONMENT,
)


@dataclass(frozen=True)
class Finished:
    """What a run of the real command left behind."""

    code: int
    out: str
    err: str
    cpu_seconds: float
    ray_started: bool


@cache
def compose_ppo(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """verl's trainer config, as `python -m verl.trainer.main_ppo OVERRIDES` would see it; to be read, not changed."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides), return_hydra_config=with_hydra)


def compose_sft(*overrides: str) -> DictConfig:
    """verl's SFT config, as `python -m verl.trainer.sft_trainer OVERRIDES` would see it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("sft_trainer_engine", overrides=list(overrides))


def clean_env(**changes: str) -> dict[str, str]:
    """This process's environment without what `import verl` wrote into it for its children."""
    return {name: value for name, value in os.environ.items() if name not in SET_BY_IMPORT} | changes


def run_main(folder: Path, *overrides: str, **env: str) -> Finished:
    """Runs the real command in `folder`; Ray, if it starts, leaves its session in `folder/ray`."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_env(RAY_TMPDIR=str(folder / "ray"), **env),
        capture_output=True,
        text=True,
        timeout=300,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ray_started = (folder / "ray").exists() or "ray init kwargs" in done.stdout
    return Finished(done.returncode, done.stdout, done.stderr, cpu_seconds, ray_started)
