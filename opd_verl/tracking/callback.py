"""Prepares a run's loggers, in the driver; verl's own loggers write, on the trainer's node."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from opd_verl.config.errors import ConfigError
from opd_verl.config.overrides import strings
from opd_verl.tracking import metrics_log
from opd_verl.tracking.resume import folder_of, resumed_step
from opd_verl.tracking.secret_values import refuse_secrets
from opd_verl.tracking.wandb_run import keep_run_id, wandb_environment

FILE_LOGGER = ("VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT")
"""Variables by which the user chooses the file of verl's `file` logger; we then leave the file alone."""
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray tells the driver of a submitted job the options of `ray job submit`."""
AGAIN = (
    f"{metrics_log.METRICS} will hold each step once. An online wandb run keeps the first values. `wandb sync` of "
    "offline files gives the repeated steps new numbers: plot over training/global_step then"
)
"""Behaviour of wandb 0.31 for steps that go backwards."""
ENV_VARS = "ray_kwargs.ray_init.runtime_env.env_vars"


class RunTracking(Callback):
    """The callback `hydra.callbacks.run_tracking._target_`: wandb's run id, group and mode, and `metrics.jsonl`.

    The config is changed when the *run* starts: a change by a callback at the job's start reaches neither verl
    nor Hydra's files. Files are touched when the job starts, after the recipe's checks.
    """

    folder: Path | None = None
    """`trainer.default_local_dir`, if metrics are kept there; None if the user chose another file."""
    run_id: str | None = None
    """wandb's run id, if we chose it; None if the user did."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Refuses secrets, and adds the `file` logger and the environment of the process that logs."""
        stop_at_secrets(config)
        own = {**os.environ, **(OmegaConf.select(config, ENV_VARS) or {})}
        loggers = strings(config.trainer.logger)
        environment = wandb_environment(config, own) if "wandb" in loggers else {}
        if "WANDB_RUN_ID" not in own:
            self.run_id = environment.get("WANDB_RUN_ID")
        environment |= {name: own[name] for name in FILE_LOGGER if name in own}
        if not any(name in own for name in FILE_LOGGER):
            self.folder = folder_of(config.trainer)
            environment[FILE_LOGGER[0]] = str(self.folder / metrics_log.METRICS)
        hand_on(config, environment, loggers if "file" in loggers else [*loggers, "file"])

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Only refuses secrets: a sweep makes the configs of its runs later, out of our reach."""
        stop_at_secrets(config)

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """Makes room for this attempt's metrics, and keeps the id of its wandb run."""
        folder_of(config.trainer).mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere if WANDB_DIR is missing
        if self.run_id is not None:
            keep_run_id(folder_of(config.trainer), self.run_id)
        if self.folder is not None:
            resumed = resumed_step(config.trainer)
            again = metrics_log.begin(self.folder, resumed)
            if again and "wandb" in config.trainer.logger:
                print(f"opd_verl: steps {resumed + 1} to {again} are made again; {AGAIN}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """Makes one file of the metrics of all attempts."""
        if self.folder is not None:
            metrics_log.end(self.folder)


def stop_at_secrets(config: DictConfig) -> None:
    """Ends the process before anything is saved or printed.

    Raises:
        SystemExit: a secret is in the config. Hydra turns a callback's exceptions into warnings, but not this one.
    """
    try:
        refuse_secrets(config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"opd_verl: {error}") from None


def hand_on(config: DictConfig, environment: dict[str, str], loggers: list[str]) -> None:
    """Sets the environment in this process, its children and verl's processes on other nodes, and `trainer.logger`."""
    os.environ.update(environment)
    new = {name: value for name, value in environment.items() if name not in of_the_job(os.environ)}
    with open_dict(config):
        config.trainer.logger = loggers
        OmegaConf.update(config, ENV_VARS, new, merge=True)


def of_the_job(environ: Mapping[str, str]) -> set[str]:
    """Names of the variables of `ray job submit --runtime-env`: Ray refuses a second value for any of them."""
    job = json.loads(environ.get(RAY_JOB, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})
