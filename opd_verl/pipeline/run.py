"""Runs the stages in order, then the comparison; a finished stage is not run again."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from opd_verl.config.errors import ConfigError
from opd_verl.pipeline.commands import StageInputs, command, environment, outputs, settings
from opd_verl.pipeline.compare import check_eval, compare
from opd_verl.pipeline.config import PipelineConfig
from opd_verl.pipeline.folders import FinishedStage
from opd_verl.pipeline.prepare import PreparedStage, prepare_stages
from opd_verl.pipeline.report import show, write_report
from opd_verl.pipeline.teacher_responses import sample_responses
from opd_verl.pipeline.training_child import run_child
from opd_verl.tracking.checkpoints import mend_tracker
from opd_verl.tracking.wandb_run import group
from opd_verl.utils.files import write_json


def run_pipeline(config: PipelineConfig) -> None:
    """Checks every stage, runs them, and compares the models.

    Raises:
        ConfigError: a setting cannot work; no stage has started.
        SystemExit: a stage failed; the message holds the end of its log.
    """
    out, console = Path(config.out), Console()
    with alone(out):
        stages = prepare_stages(config)
        check_eval(config, stages)
        results = run_stages(config, stages)
        if config.eval.enabled:
            rows = compare(config, stages, results)
            write_report(rows, stages, out)
            show(rows, console)
            console.print(f"{out}: table.md, table.json, stages.png; models: {out / 'models'}")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks the pipeline's folder: two pipelines would write the same checkpoints.

    Raises:
        ConfigError: another process holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "another pipeline runs in this folder"
            raise ConfigError("out", str(out), problem, "wait until it ends, or set another out=") from None
        yield


def run_stages(config: PipelineConfig, stages: list[PreparedStage]) -> dict[str, FinishedStage]:
    """Runs all stages that are not finished. Returns the results by the stages' names."""
    results: dict[str, FinishedStage] = {}
    for place, stage in enumerate(stages, start=1):
        label = f"[{place}/{len(stages)}] {stage.name} ({stage.config.recipe})"
        done = stage.folder.finished()
        if done is not None:
            print(f"{label}: finished before, {done.steps} steps: {stage.folder.root}", flush=True)
        models = {name: result.model for name, result in results.items()}
        results[stage.name] = done or run_stage(config, stage, label, models)
        link(Path(config.out) / "models" / stage.name, Path(results[stage.name].model))
    return results


def run_stage(config: PipelineConfig, stage: PreparedStage, label: str, models: Mapping[str, str]) -> FinishedStage:
    """Runs one stage, from its last checkpoint if it has one; `models`: folders of the earlier stages' models."""
    recipe, folder = stage.config.recipe, stage.folder
    student = models.get(stage.config.student, stage.config.student)
    teacher = None if stage.config.teacher is None else models.get(stage.config.teacher, stage.config.teacher)
    folder.root.mkdir(parents=True, exist_ok=True)
    train = stage.config.train or config.data.train
    if stage.responses is not None:
        assert teacher is not None
        sample_responses(stage.responses, teacher)
        train = str(stage.responses.train_file)
    inputs = StageInputs(student, teacher if stage.distils else None, train, config.data.val)
    where = outputs(config, stage.name, recipe, folder.checkpoints)
    line = command(recipe, settings(config, stage.config, inputs, stage.distils, where), stage.processes)
    # A kill while verl writes the name of its newest checkpoint leaves the tracker empty, and verl would not resume.
    mend_tracker(folder.checkpoints)
    done, seconds = folder.latest_step(), Stopwatch(folder.root / "seconds.json")
    print(f"{label}: {'begins' if not done else f'resumes after step {done}'}; log: {folder.log}", flush=True)
    with seconds.running():
        run_child(
            line, folder.log, folder.next_attempt(), label, done, stage.config.steps,
            environment(recipe) | wandb_group(config), "the same command resumes from its last checkpoint",
        )  # fmt: skip
    return folder.finish(seconds.total)


def wandb_group(config: PipelineConfig) -> dict[str, str]:
    """Groups all stages and seeds of a pipeline in wandb; a group that the user has set stays."""
    return {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", group(Path(config.out).absolute().name))}


class Stopwatch:
    """Wall time of all attempts, kept in a file; an attempt that was killed with this process does not count."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.total: float = json.loads(file.read_text()) if file.exists() else 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds the wall time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.total += time.monotonic() - started
            write_json(self.file, self.total)


def link(name: Path, target: Path) -> None:
    """Links `<out>/models/<stage>` to the trained model."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(target)
