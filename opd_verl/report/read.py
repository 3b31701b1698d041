"""Reads folders as runs: each file with a known name becomes a part of the record."""

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

Content = TypeVar("Content")
MOST_RUNS = 26
"""Letters that name the runs."""
FILES = "metrics.jsonl, samples/step_*.json, probe.json, tokens.json, table.json"
SAMPLE_FOLDERS = ("samples", "checkpoints/samples")
HYDRA_FILES = (".hydra/overrides.yaml", "hydra/.hydra/overrides.yaml", "../hydra/.hydra/overrides.yaml")
STEPS_SHOWN = 3
"""Number of training steps whose rollouts are shown: the first, the last, and one in the middle."""


def read_runs(folders: Sequence[Path], samples: int) -> list[ReportedRun]:
    """All runs, with at most `samples` rollouts of each training and of each probe.

    Raises:
        ConfigError: too many runs, a missing folder, a folder without known files, or an unreadable file.
    """
    if samples < 0:
        raise ConfigError("samples", samples, "must not be negative", "--samples 0 or more")
    if len(folders) > MOST_RUNS:
        raise ConfigError("runs", len(folders), f"at most {MOST_RUNS} runs can be told apart", "give fewer folders")
    names = run_names(folders)
    return [read_run(folder, chr(ord("A") + at), names[at], samples) for at, folder in enumerate(folders)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The end of each path, long enough to tell all folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("runs", [str(folder) for folder in folders], "a folder is given twice", "name each folder once")


def read_run(folder: Path, letter: str, name: str, samples: int) -> ReportedRun:
    """Reads one folder."""
    if not folder.is_dir():
        raise ConfigError("run", str(folder), "is not a folder", "name the folder of metrics.jsonl or probe.json")
    run = ReportedRun(
        letter,
        name,
        recipe_of(folder),
        _parsed(folder, steps_of, []),
        [*training_samples(folder, samples), *probe_samples(folder / "tokens.json", samples)],
        _parsed(folder / "probe.json", lambda path: pairs_from_json(_content(path)), []),
        _parsed(folder / "table.json", read_table, None),
        folder,
    )
    if not (run.steps or run.shown or run.pairs or run.evaluation):
        raise ConfigError("run", str(folder), f"holds nothing to show: none of {FILES}", "name the run's own folder")
    return run


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The training's metrics, from a run's own folder or from a pipeline's stage with a file for each attempt."""
    return logged(folder) or merged(sorted(folder.glob("metrics-*.jsonl")))


def read_table(path: Path) -> Evaluation:
    """Reads the evaluation's `table.json`."""
    content = _content(path)
    return Evaluation(rows_from_json(content), content["settings"]["n"], content["settings"]["ks"])


def training_samples(folder: Path, count: int) -> list[ShownRollout]:
    """At most `count` rollouts, from the first shown step, the last, and a step in the middle.

    Each file begins with its extremes, so the first rollouts of a file are the lowest and the highest mean r_t.
    """
    files = sorted(file for name in SAMPLE_FOLDERS for file in (folder / name).glob("step_*.json"))
    steps = evenly(files, min(STEPS_SHOWN, count))
    shown: list[ShownRollout] = []
    for place, file in enumerate(steps):
        share = count // len(steps) + (place < count % len(steps))
        shown += _parsed(file, lambda path, share=share: _step_samples(path, share), [])
    return shown


def _step_samples(path: Path, count: int) -> list[ShownRollout]:
    content = _content(path)
    return [ShownRollout(content["step"], from_json(rollout)) for rollout in content["rollouts"][:count]]


def probe_samples(path: Path, count: int) -> list[ShownRollout]:
    """At most `count` rollouts of the probe."""
    return _parsed(
        path,
        lambda path: [ShownRollout(None, from_json(rollout)) for rollout in evenly(_content(path)["rollouts"], count)],
        [],
    )


def evenly(items: Sequence[Content], count: int) -> list[Content]:
    """At most `count` items at equal distances, from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / max(count - 1, 1))] for place in range(count)]


def recipe_of(folder: Path) -> str:
    """The recipe that Hydra's files name, in the run's folder or its pipeline's; "" if they name none."""
    for path in (folder / name for name in HYDRA_FILES):
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            key, _, value = line.removeprefix("- ").partition("=")
            if key == "recipe":
                return value.strip("'\"")
    return ""


def _content(path: Path) -> Any:
    return json.loads(path.read_text())


def _parsed(path: Path, parse: Callable[[Path], Content], missing: Content) -> Content:
    """The parsed content of a file, or `missing` if there is no file."""
    if not path.exists():
        return missing
    try:
        return parse(path)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise ConfigError("file", str(path), problem, "make it again, or move it out of the folder") from error
