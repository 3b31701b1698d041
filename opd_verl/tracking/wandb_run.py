"""Which wandb run a training is: its id over restarts, its group and its kind."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

from opd_verl.tracking.offline import why_offline
from opd_verl.tracking.resume import folder_of, newest_checkpoint, resumed_from

RUN_ID = "wandb_run_id"
"""The file in `trainer.default_local_dir` that keeps the id."""
SEED = re.compile(r"[-_.]seed[-_.=]?\d+$", re.IGNORECASE)
OTHER_RESUMES = ("WANDB_RESUME_FROM", "WANDB_FORK_FROM")
"""The user rewinds or forks a run; wandb takes no WANDB_RESUME beside these."""


def wandb_environment(config: DictConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """What the process that logs must find in its environment; what the user has set stays."""
    folder = folder_of(config.trainer)
    # A submitted job's working directory goes with the job, and with it what wandb had no network for.
    found = {"WANDB_RUN_GROUP": group(config.trainer.experiment_name), "WANDB_DIR": str(folder)}
    recipe = OmegaConf.select(config, "hydra.runtime.choices.recipe")
    if recipe:
        found["WANDB_JOB_TYPE"] = recipe
    if not any(name in environ for name in OTHER_RESUMES):
        found |= {"WANDB_RUN_ID": run_id(config.trainer), "WANDB_RESUME": "allow"}
    found |= {"WANDB_MODE": environ["WANDB_MODE"]} if "WANDB_MODE" in environ else offline_mode(environ, folder)
    return found | {name: environ[name] for name in found if name in environ}


def group(name: str) -> str:
    """An experiment's name without its seed: `distil-seed3` belongs to `distil`."""
    return SEED.sub("", name) or name


def run_id(trainer: Any) -> str:
    """The id of the run that is gone on with, or a new one: wandb ignores steps that a run already has."""
    folder = folder_of(trainer)
    checkpoint, kept = resumed_from(trainer), folder / RUN_ID
    if checkpoint is None or checkpoint != newest_checkpoint(folder) or not kept.exists():
        return uuid4().hex[:8]
    found = kept.read_text().strip()
    print(f"opd_verl: wandb goes on with run {found} after {checkpoint.name}")
    return found


def keep_run_id(folder: Path, name: str) -> None:
    """For the next attempt at the run; the folder must be there."""
    (folder / RUN_ID).write_text(f"{name}\n")


def offline_mode(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`WANDB_MODE=offline` where wandb could not log in; it writes to `folder`."""
    problem = why_offline(environ)
    if not problem:
        return {}
    where = environ.get("WANDB_DIR", folder)
    print(f"opd_verl: wandb runs offline ({problem}); send it later with `wandb sync {where}/wandb/offline-run-*`")
    return {"WANDB_MODE": "offline"}
