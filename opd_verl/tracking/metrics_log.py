"""`<trainer.default_local_dir>/metrics.jsonl`: every step once, over all attempts at a run.

verl's `file` logger empties the file that it opens. While a run continues after step N, the steps up to N are therefore
beside it in `metrics.before.jsonl`, and at the end both become one file. A kill at any point leaves files from which
the next attempt restores all steps.
"""

from pathlib import Path

from opd_verl.tracking.metrics_file import Step, merged, write_steps

METRICS = "metrics.jsonl"
BEFORE = "metrics.before.jsonl"
OLD = "metrics.old.jsonl"
"""Name of the file with the steps of an earlier run in this folder that was not continued."""


def logged(folder: Path) -> list[Step]:
    """Every step of the run once, also during the run and after a kill."""
    return merged([folder / BEFORE, folder / METRICS])


def begin(folder: Path, resumed: int) -> int:
    """Puts the steps up to `resumed` aside (0: a new run) and makes room for the next steps.

    Returns:
        Last step that was logged after `resumed` and will be trained again; 0: no step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps = logged(folder)
    if steps and not resumed:
        write_steps(folder / OLD, steps)
    kept = [step for step in steps if resumed and step["step"] <= resumed]
    if kept:
        write_steps(folder / BEFORE, kept)
    else:
        (folder / BEFORE).unlink(missing_ok=True)
    (folder / METRICS).unlink(missing_ok=True)
    return max((int(step["step"]) for step in steps if resumed and step["step"] > resumed), default=0)


def end(folder: Path) -> None:
    """Joins the steps that were put aside and the steps logged since, in one file."""
    if (folder / BEFORE).exists():
        write_steps(folder / METRICS, logged(folder))
        (folder / BEFORE).unlink()
