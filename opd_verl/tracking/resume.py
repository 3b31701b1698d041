"""The checkpoint from which verl's main_ppo will continue."""

from pathlib import Path

from omegaconf import DictConfig

from opd_verl.tracking.checkpoints import STEP, latest_step, mend_tracker


def folder_of(trainer: DictConfig) -> Path:
    """`trainer.default_local_dir` as an absolute path: processes on other nodes start in other folders."""
    return Path(trainer.default_local_dir).absolute()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if it has one."""
    mend_tracker(folder)
    checkpoint = folder / f"{STEP}{latest_step(folder)}"
    return checkpoint if checkpoint.is_dir() else None


def resumed_from(trainer: DictConfig) -> Path | None:
    """The checkpoint that `trainer.resume_mode` will load; None: the run begins at step 1."""
    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path).absolute()
    return newest_checkpoint(folder_of(trainer))


def resumed_step(trainer: DictConfig) -> int:
    """The step after which the run in this folder continues; 0: a new run, even from another folder's checkpoint."""
    checkpoint = resumed_from(trainer)
    if checkpoint is None or checkpoint.parent != folder_of(trainer):
        return 0
    return int(checkpoint.name.removeprefix(STEP))
