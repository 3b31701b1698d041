"""`<trainer.default_local_dir>/metrics.jsonl`: every step once, over all attempts at a run.

verl's `file` logger empties the file that it opens. So while a run goes on after step N, what was logged up to N lies
beside it in `metrics.before.jsonl`, and at the end both become one. A kill at any point leaves files from which the
next attempt makes the same.
"""

from pathlib import Path
from typing import Any

from opd_verl.tracking.metrics_file import merged, write_steps

METRICS = "metrics.jsonl"
BEFORE = "metrics.before.jsonl"
OLD = "metrics.old.jsonl"
"""Of a run in the same folder that this one does not go on from; the last one only."""


def logged(folder: Path) -> list[dict[str, Any]]:
    """Every step of the run once, also while it goes on and after a kill."""
    return merged([folder / BEFORE, folder / METRICS])


def begin(folder: Path, resumed: int) -> int:
    """Puts by what was logged up to step `resumed` (0: a new run).

    Returns:
        The last step that was logged after it, and will be made again; 0: none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = logged(folder)
    if found and not resumed:
        write_steps(folder / OLD, found)
    kept = [step for step in found if resumed and step["step"] <= resumed]
    if kept:
        write_steps(folder / BEFORE, kept)
    else:
        (folder / BEFORE).unlink(missing_ok=True)
    (folder / METRICS).unlink(missing_ok=True)
    return max((step["step"] for step in found if resumed and step["step"] > resumed), default=0)


def end(folder: Path) -> None:
    """Makes one file of what was put by and what was logged since."""
    if (folder / BEFORE).exists():
        write_steps(folder / METRICS, logged(folder))
        (folder / BEFORE).unlink()
