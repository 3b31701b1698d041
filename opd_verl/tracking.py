"""Weights & Biases without a network: the run is written to disk instead of stopping at a login prompt."""

import netrc
import os
from typing import Any
from urllib.parse import urlparse

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from opd_verl.network import unreachable

DEFAULT_SERVER = "https://api.wandb.ai"


class WandbOffline(Callback):
    """`hydra.callbacks.wandb_offline._target_`: sets `WANDB_MODE=offline` where wandb could not log in."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Acts only if `trainer.logger` has wandb and the user has not chosen `WANDB_MODE`."""
        if "wandb" not in config.trainer.logger or "WANDB_MODE" in os.environ:
            return
        problem = why_offline(os.environ.get("WANDB_BASE_URL", DEFAULT_SERVER))
        if problem:
            print(f"opd_verl: wandb runs offline ({problem}); send it later with `wandb sync wandb/offline-run-*`")
            os.environ["WANDB_MODE"] = "offline"
            with open_dict(config):  # the process that logs may run on another node
                config.ray_kwargs.ray_init.runtime_env.setdefault("env_vars", {})["WANDB_MODE"] = "offline"


def why_offline(server: str) -> str | None:
    """What keeps wandb from logging in to `server`, or None."""
    host = urlparse(server).hostname or server
    if "WANDB_API_KEY" not in os.environ and not has_netrc_entry(host):
        return "no WANDB_API_KEY and no entry in ~/.netrc"
    return unreachable(server)


def has_netrc_entry(host: str) -> bool:
    """Whether `wandb login` has left a key for this host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
