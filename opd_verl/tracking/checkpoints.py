"""verl's folder of checkpoints: finds the newest whole checkpoint, also after a kill."""

from pathlib import Path

from opd_verl.utils.files import write_text

STEP = "global_step_"


def tracker(folder: Path) -> Path:
    """The file in which verl names its newest checkpoint."""
    return folder / "latest_checkpointed_iteration.txt"


def latest_step(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0: none."""
    return int(tracker(folder).read_text()) if tracker(folder).exists() else 0


def mend_tracker(folder: Path) -> None:
    """Names the newest checkpoint again if a kill has left the tracker file empty.

    verl empties the file before it writes, and writes only after the checkpoint is whole.
    """
    if tracker(folder).exists() and not tracker(folder).read_text().strip():
        steps = [int(checkpoint.name.removeprefix(STEP)) for checkpoint in folder.glob(f"{STEP}*")]
        write_text(tracker(folder), str(max(steps, default=0)))
