"""Composes the config of a command in this process, as the command itself would."""

import os
from collections.abc import Sequence

from omegaconf import DictConfig

PPO, SFT = "ppo_trainer", "sft_trainer_engine"
"""Names of verl's primary configs of `verl.trainer.main_ppo` and `verl.trainer.sft_trainer`."""


def compose_trainer(overrides: Sequence[str], config_name: str = PPO) -> DictConfig:
    """The config with which the trainer would run. Takes some seconds, most of them for `import verl`.

    Raises:
        SystemExit: Hydra refuses an override, or there is no such recipe; the message is Hydra's.
    """
    before = dict(os.environ)
    import verl  # noqa: F401  (loads the plugin, which registers our slots with Hydra)

    try:
        return compose_config("verl.trainer.config", config_name, overrides)
    finally:  # verl's import sets variables for its own children; our callers start other programs
        os.environ.clear()
        os.environ.update(before)


def compose_config(module: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """The primary config `name` of a package of configs, with these overrides.

    Raises:
        SystemExit: Hydra refuses an override; the message is Hydra's.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()  # Hydra allows one instance; a command of ours has composed its own config
    try:
        with initialize_config_module(module, version_base=None):
            return compose(name, overrides=list(overrides))
    except HydraException as error:
        raise SystemExit(f"bad override in {' '.join(overrides)}\n{error}") from None
