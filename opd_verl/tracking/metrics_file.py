"""The JSON lines that verl's `file` logger writes: one for each step."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from opd_verl.utils.files import write_text

Step = dict[str, float]
"""The metrics of a step by name, and its number as `step`."""


def read_steps(metrics: Path, known: int = 0) -> Iterator[Step]:
    """The steps after the first `known` lines; an unfinished last line is left out."""
    if not metrics.exists():
        return
    for line in metrics.read_text().splitlines(keepends=True)[known:]:
        if line.endswith("\n"):
            record = json.loads(line)
            yield {"step": record["step"], **record["data"]}


def merged(attempts: Iterable[Path]) -> list[Step]:
    """Every step once, in order. The last attempt at a step wins; metrics that only an earlier attempt logged stay.

    A run that resumes after step 6 may validate first, and log the result as another line of step 6.
    """
    by_number: dict[float, Step] = {}
    for attempt in attempts:
        for step in read_steps(attempt):
            by_number[step["step"]] = by_number.get(step["step"], {}) | step
    return [by_number[number] for number in sorted(by_number)]


def write_steps(metrics: Path, steps: Iterable[Step]) -> None:
    """Writes the whole file in the form of verl's logger."""
    records = [{"step": step["step"], "data": {key: step[key] for key in step if key != "step"}} for step in steps]
    write_text(metrics, "".join(json.dumps(record) + "\n" for record in records))
