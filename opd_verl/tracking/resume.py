"""The checkpoint that verl's main_ppo will go on from."""

from pathlib import Path
from typing import Any

from opd_verl.tracking.checkpoints import STEP, latest_step, mend_tracker


def folder_of(trainer: Any) -> Path:
    """`trainer.default_local_dir`, wherever the process that reads it was started."""
    return Path(trainer.default_local_dir).absolute()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if it has one."""
    mend_tracker(folder)
    found = folder / f"{STEP}{latest_step(folder)}"
    return found if found.is_dir() else None


def resumed_from(trainer: Any) -> Path | None:
    """What `trainer.resume_mode` will load; None: the run begins at step 1."""
    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path).absolute()
    return newest_checkpoint(folder_of(trainer))


def resumed_step(trainer: Any) -> int:
    """The step after which the run in this folder goes on; 0: it begins, be it from another folder's checkpoint."""
    checkpoint = resumed_from(trainer)
    if checkpoint is None or checkpoint.parent != folder_of(trainer):
        return 0
    return int(checkpoint.name.removeprefix(STEP))
