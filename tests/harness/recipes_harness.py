"""verl's configs as its commands see them, and a run of the real command."""

import os
import resource
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import verl  # noqa: F401  (loads the plugin, which registers the slots `recipe` and `cluster` with Hydra)
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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
    """The outcome of a run of the real command."""

    code: int
    out: str
    err: str
    cpu_seconds: float
    ray_started: bool


def compose_ppo(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """verl's trainer config, as `python -m verl.trainer.main_ppo OVERRIDES` would see it; to be read, not changed."""
    return compose_with_hydra("ppo_trainer", *overrides) if with_hydra else overridden("ppo_trainer", *overrides)


def compose_sft(*overrides: str) -> DictConfig:
    """verl's SFT config, as `python -m verl.trainer.sft_trainer OVERRIDES` would see it; to be read, not changed."""
    return overridden("sft_trainer_engine", *overrides)


@cache
def overridden(primary: str, *overrides: str) -> DictConfig:
    """The config that Hydra composes from all overrides, in a hundredth of a second for each new set of values.

    Hydra composes a config of its choices (`recipe=`, ...) and then sets the values of the other overrides in it. Only
    the first part is slow, and here it is done once per set of choices. test_recipes.py compares this with Hydra.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [item for item in parsed if may_be_choice(item)]
    config = deepcopy(compose_in_full(primary, *(str(item.input_line) for item in choices)))
    ConfigLoaderImpl._apply_overrides_to_config([item for item in parsed if not may_be_choice(item)], config)
    return config


def may_be_choice(override: Override) -> bool:
    """Whether it may choose a file: groups have no dots, and Hydra reads the keys of its own section earlier."""
    key = override.key_or_group
    return "." not in key or "/" in key or override.package is not None or key.startswith("hydra.")


@cache
def compose_in_full(primary: str, *overrides: str) -> DictConfig:
    """The config that Hydra alone composes."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(primary, overrides=list(overrides))


@cache
def compose_with_hydra(primary: str, *overrides: str) -> DictConfig:
    """By Hydra alone, with its own section."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(primary, overrides=list(overrides), return_hydra_config=True)


def clean_env(**changes: str) -> dict[str, str]:
    """This process's environment without what `import verl` wrote into it for its children."""
    return {name: value for name, value in os.environ.items() if name not in SET_BY_IMPORT} | changes


def run_main(folder: Path, *overrides: str, **env: str) -> Finished:
    """Runs the real command in `folder`."""
    return run(folder, "-m", "verl.trainer.main_ppo", *overrides, **env)


def run(folder: Path, *arguments: str, **env: str) -> Finished:
    """Runs Python in `folder`; Ray, if it starts, leaves its session in `folder/ray`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
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
