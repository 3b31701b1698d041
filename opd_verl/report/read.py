"""Folders to runs: each file that is known by its name becomes its part of the record."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from opd_verl.config.errors import ConfigError
from opd_verl.eval.table import rows_from_json
from opd_verl.report.probe import pairs_from_json
from opd_verl.report.runs import Evaluation, ReportedRun, ShownRollout
from opd_verl.tracking.metrics_file import merged
from opd_verl.tracking.metrics_log import logged
from opd_verl.tracking.samples.record import from_json

Found = TypeVar("Found")
MOST_RUNS = 26
FILES = "metrics.jsonl, samples/step_*.json, probe.json, tokens.json, table.json"
SAMPLE_FOLDERS = ("samples", "checkpoints/samples")
HYDRA_FILES = (".hydra/overrides.yaml", "hydra/.hydra/overrides.yaml", "../hydra/.hydra/overrides.yaml")
STEPS_SHOWN = 3
"""Training steps of which rollouts are shown: the first, the last, and those in the middle between."""


def read_runs(folders: Sequence[Path], samples: int) -> list[ReportedRun]:
    """All runs, with at most `samples` rollouts of each run's training and as many of each probe.

    Raises:
        ConfigError: too many runs, a folder that is none or holds nothing to show, or a file that cannot be read.
    """
    if samples < 0:
        raise ConfigError("samples", samples, "less than no rollout", "--samples 0 or more")
    if len(folders) > MOST_RUNS:
        raise ConfigError("runs", len(folders), f"more than {MOST_RUNS} cannot be told apart", "give fewer folders")
    names = distinct_names(folders)
    return [read_run(folder, chr(ord("A") + at), names[at], samples) for at, folder in enumerate(folders)]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The end of each path, long enough that all differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("runs", [str(folder) for folder in folders], "a folder is given twice", "name each once")


def read_run(folder: Path, letter: str, name: str, samples: int) -> ReportedRun:
    """One folder."""
    if not folder.is_dir():
        raise ConfigError("run", str(folder), "is no folder", "name the folder that holds metrics.jsonl or probe.json")
    found = ReportedRun(
        letter,
        name,
        recipe_of(folder),
        _parsed(folder, steps_of, []),
        [*training_samples(folder, samples), *probe_samples(folder / "tokens.json", samples)],
        _parsed(folder / "probe.json", lambda path: pairs_from_json(_content(path)), []),
        _parsed(folder / "table.json", read_table, None),
        folder,
    )
    if not (found.steps or found.shown or found.pairs or found.evaluation):
        raise ConfigError("run", str(folder), f"holds nothing to show: none of {FILES}", "name the run's own folder")
    return found


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The training's metrics: a run's own folder, or a pipeline's stage with a file for each attempt."""
    return logged(folder) or merged(sorted(folder.glob("metrics-*.jsonl")))


def read_table(path: Path) -> Evaluation:
    """`table.json` of the evaluation."""
    content = _content(path)
    return Evaluation(rows_from_json(content), content["settings"]["n"], content["settings"]["ks"])


def training_samples(folder: Path, count: int) -> list[ShownRollout]:
    """Some rollouts of the first and the last shown step and of one between, the chosen ends of each first."""
    files = sorted(file for name in SAMPLE_FOLDERS for file in (folder / name).glob("step_*.json"))
    steps = evenly(files, min(STEPS_SHOWN, count))
    found: list[ShownRollout] = []
    for place, file in enumerate(steps):
        share = count // len(steps) + (place < count % len(steps))
        found += _parsed(file, lambda path, share=share: _step_samples(path, share), [])
    return found


def _step_samples(path: Path, count: int) -> list[ShownRollout]:
    content = _content(path)
    return [ShownRollout(content["step"], from_json(one)) for one in content["rollouts"][:count]]


def probe_samples(path: Path, count: int) -> list[ShownRollout]:
    """Some rollouts of the probe."""
    return _parsed(
        path, lambda path: [ShownRollout(None, from_json(one)) for one in evenly(_content(path)["rollouts"], count)], []
    )


def evenly(items: Sequence[Found], count: int) -> list[Found]:
    """At most `count` of them, the first and the last among them where there is room for two."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / max(count - 1, 1))] for place in range(count)]


def recipe_of(folder: Path) -> str:
    """As Hydra's files in the run's folder or its pipeline's say; "" where they do not."""
    for path in (folder / name for name in HYDRA_FILES):
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            key, _, value = line.removeprefix("- ").partition("=")
            if key == "recipe":
                return value.strip("'\"")
    return ""


def _content(path: Path) -> Any:
    return json.loads(path.read_text())


def _parsed(path: Path, parse: Callable[[Path], Found], missing: Found) -> Found:
    """What a file holds, or `missing` where there is none."""
    if not path.exists():
        return missing
    try:
        return parse(path)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise ConfigError("file", str(path), problem, "make it again, or move it out of the folder") from error
