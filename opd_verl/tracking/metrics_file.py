"""The file that verl's `file` logger writes: a line for each step."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from opd_verl.utils.files import write_text


def read_steps(metrics: Path, known: int = 0) -> Iterator[dict[str, Any]]:
    """Steps beyond the first `known` lines; a line still being written is left alone."""
    if not metrics.exists():
        return
    for line in metrics.read_text().splitlines(keepends=True)[known:]:
        if line.endswith("\n"):
            record = json.loads(line)
            yield {"step": record["step"], **record["data"]}


def merged(attempts: Iterable[Path]) -> list[dict[str, Any]]:
    """Every step once, in order: what the last attempt at it says, and of the attempts before what that leaves out.

    A run that goes on after step 6 may validate first, and log that as another line of step 6.
    """
    found: dict[int, dict[str, Any]] = {}
    for attempt in attempts:
        for step in read_steps(attempt):
            found[step["step"]] = found.get(step["step"], {}) | step
    return [found[number] for number in sorted(found)]


def write_steps(metrics: Path, steps: Iterable[dict[str, Any]]) -> None:
    """Writes the file, whole, as verl's logger would have."""
    records = [{"step": one["step"], "data": {key: one[key] for key in one if key != "step"}} for one in steps]
    write_text(metrics, "".join(json.dumps(record) + "\n" for record in records))
