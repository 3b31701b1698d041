"""The wandb run of a training: its id over restarts, its group and its job type."""

import re
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

from opd_verl.tracking.offline import why_offline
from opd_verl.tracking.resume import folder_of, newest_checkpoint, resumed_from

RUN_ID = "wandb_run_id"
"""Name of the file in `trainer.default_local_dir` that keeps the id."""
SEED = re.compile(r"[-_.]seed[-_.=]?\d+$", re.IGNORECASE)
OTHER_RESUMES = ("WANDB_RESUME_FROM", "WANDB_FORK_FROM")
"""Variables by which the user rewinds or forks a run; wandb accepts no WANDB_RESUME beside them."""


def wandb_environment(config: DictConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the process that logs; a variable that the user has set keeps its value."""
    folder = folder_of(config.trainer)
    # Not the working directory: Ray deletes it with a submitted job, and offline runs would be lost.
    variables = {"WANDB_RUN_GROUP": group(config.trainer.experiment_name), "WANDB_DIR": str(folder)}
    recipe = OmegaConf.select(config, "hydra.runtime.choices.recipe")
    if recipe:
        variables["WANDB_JOB_TYPE"] = recipe
    if not any(name in environ for name in OTHER_RESUMES):
        variables |= {"WANDB_RUN_ID": run_id(config.trainer), "WANDB_RESUME": "allow"}
    mode = {"WANDB_MODE": environ["WANDB_MODE"]} if "WANDB_MODE" in environ else offline_mode(environ, folder)
    variables |= mode
    return variables | {name: environ[name] for name in variables if name in environ}


def group(name: str) -> str:
    """An experiment's name without its seed: `distil-seed3` belongs to `distil`."""
    return SEED.sub("", name) or name


def run_id(trainer: DictConfig) -> str:
    """The id of the wandb run that this training continues, or a new id.

    A run continues only from its newest checkpoint: wandb ignores steps that a run already has.
    """
    folder = folder_of(trainer)
    checkpoint, kept = resumed_from(trainer), folder / RUN_ID
    if checkpoint is None or checkpoint != newest_checkpoint(folder) or not kept.exists():
        return uuid4().hex[:8]
    continued = kept.read_text().strip()
    print(f"opd_verl: wandb continues run {continued} after {checkpoint.name}")
    return continued


def keep_run_id(folder: Path, name: str) -> None:
    """Writes the id down for the next attempt at the run; the folder must exist."""
    (folder / RUN_ID).write_text(f"{name}\n")


def offline_mode(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`WANDB_MODE=offline` if wandb cannot log in, else nothing; an offline run is written to `folder`."""
    problem = why_offline(environ)
    if not problem:
        return {}
    where = environ.get("WANDB_DIR", folder)
    print(f"opd_verl: wandb runs offline ({problem}); send it later with `wandb sync {where}/wandb/offline-run-*`")
    return {"WANDB_MODE": "offline"}
