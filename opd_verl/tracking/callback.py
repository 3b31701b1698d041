"""Prepares what a run is written down with, in the driver: verl's own loggers do the writing, on whatever node."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from opd_verl.config.errors import ConfigError
from opd_verl.config.overrides import strings
from opd_verl.tracking import metrics_log
from opd_verl.tracking.resume import folder_of, resumed_step
from opd_verl.tracking.secret_values import refuse_secrets
from opd_verl.tracking.wandb_run import keep_run_id, wandb_environment

FILE_LOGGER = ("VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT")
"""With either the user says where verl's `file` logger writes; keeping what was there is theirs then."""
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells the driver of a submitted job what it was submitted with."""
AGAIN = (
    f"{metrics_log.METRICS} will have them once. wandb keeps what it has of them when it is online; `wandb sync` of "
    "offline files numbers the second ones on, and training/global_step is then the axis to draw over"
)
"""What wandb 0.31 does with steps that go backwards."""
ENV_VARS = "ray_kwargs.ray_init.runtime_env.env_vars"


class RunTracking(Callback):
    """`hydra.callbacks.run_tracking._target_`: wandb's run id, group and mode, and `metrics.jsonl`.

    The config is changed when the *run* starts: what a callback changes when the job starts reaches neither verl nor
    Hydra's files. Files are touched when the job starts, after the recipe's checks.
    """

    folder: Path | None = None
    """`trainer.default_local_dir`, where ours to keep metrics in."""
    run_id: str | None = None
    """wandb's, where it is not the user's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses secrets, and adds the `file` logger and the environment of the process that logs."""
        stop_at_secrets(config)
        own = {**os.environ, **(OmegaConf.select(config, ENV_VARS) or {})}
        loggers = strings(config.trainer.logger)
        found = wandb_environment(config, own) if "wandb" in loggers else {}
        if "WANDB_RUN_ID" not in own:
            self.run_id = found.get("WANDB_RUN_ID")
        found |= {name: own[name] for name in FILE_LOGGER if name in own}
        if not any(name in own for name in FILE_LOGGER):
            self.folder = folder_of(config.trainer)
            found[FILE_LOGGER[0]] = str(self.folder / metrics_log.METRICS)
        hand_on(config, found, loggers if "file" in loggers else [*loggers, "file"])

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A sweep makes the configs of its runs later, out of our reach: only secrets are looked for."""
        stop_at_secrets(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes room for this attempt's metrics, and keeps the id of its wandb run."""
        folder_of(config.trainer).mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere
        if self.run_id is not None:
            keep_run_id(folder_of(config.trainer), self.run_id)
        if self.folder is not None:
            resumed = resumed_step(config.trainer)
            again = metrics_log.begin(self.folder, resumed)
            if again and "wandb" in config.trainer.logger:
                print(f"opd_verl: steps {resumed + 1} to {again} are made again; {AGAIN}")

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Makes one file of the metrics of all attempts."""
        if self.folder is not None:
            metrics_log.end(self.folder)


def stop_at_secrets(config: DictConfig) -> None:
    """Before anything is saved or printed.

    Raises:
        SystemExit: a secret is in the config. Hydra turns a callback's exceptions into warnings, but not this one.
    """
    try:
        refuse_secrets(config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"opd_verl: {error}") from None


def hand_on(config: DictConfig, environment: dict[str, str], loggers: list[str]) -> None:
    """To this process, to its children, and to verl's on other nodes."""
    os.environ.update(environment)
    new = {name: value for name, value in environment.items() if name not in of_the_job(os.environ)}
    with open_dict(config):
        config.trainer.logger = loggers
        OmegaConf.update(config, ENV_VARS, new, merge=True)


def of_the_job(environ: Mapping[str, str]) -> set[str]:
    """Variables of `ray job submit --runtime-env`: every process has them, and Ray refuses to be told them again."""
    job = json.loads(environ.get(RAY_JOB, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})
