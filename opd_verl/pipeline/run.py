"""Runs the planned stages in order; what is finished is not run again."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from opd_verl.config.errors import ConfigError
from opd_verl.pipeline.commands import Inputs, command, environment, outputs, settings
from opd_verl.pipeline.config import PipelineConfig
from opd_verl.pipeline.folders import Finished
from opd_verl.pipeline.prepare import StagePlan
from opd_verl.pipeline.rollouts import make_rollouts
from opd_verl.pipeline.training_child import run_child
from opd_verl.tracking.checkpoints import mend_tracker
from opd_verl.tracking.wandb_run import group
from opd_verl.utils.files import write_json


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds the pipeline's folder: two pipelines would write the same checkpoints.

    Raises:
        ConfigError: somebody else holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "another pipeline runs in this folder"
            raise ConfigError("out", str(out), problem, "wait, or another out=") from None
        yield


def run_stages(config: PipelineConfig, plans: list[StagePlan]) -> dict[str, Finished]:
    """The results by stage."""
    found: dict[str, Finished] = {}
    for place, plan in enumerate(plans, start=1):
        label = f"[{place}/{len(plans)}] {plan.name} ({plan.stage.recipe})"
        done = plan.folder.finished()
        if done is not None:
            print(f"{label}: finished before, {done.steps} steps: {plan.folder.root}", flush=True)
        found[plan.name] = done or run_stage(config, plan, label, {name: one.model for name, one in found.items()})
        link(Path(config.out) / "models" / plan.name, Path(found[plan.name].model))
    return found


def run_stage(config: PipelineConfig, plan: StagePlan, label: str, models: Mapping[str, str]) -> Finished:
    """One stage, from its last checkpoint if it has one; `models`: of the stages before it."""
    student = models.get(plan.stage.student, plan.stage.student)
    teacher = None if plan.stage.teacher is None else models.get(plan.stage.teacher, plan.stage.teacher)
    plan.folder.root.mkdir(parents=True, exist_ok=True)
    train = plan.stage.train or config.data.train
    if plan.rollouts is not None:
        assert teacher is not None
        make_rollouts(plan.rollouts, teacher)
        train = str(plan.rollouts.train_file)
    inputs = Inputs(student, teacher if plan.distils else None, train, config.data.val)
    where = outputs(config, plan.name, plan.stage.recipe, plan.folder.checkpoints)
    line = command(plan.stage.recipe, settings(config, plan.stage, inputs, plan.distils, where), plan.processes)
    mend_tracker(plan.folder.checkpoints)
    done, seconds = plan.folder.latest_step(), Stopwatch(plan.folder.root / "seconds.json")
    print(f"{label}: {'begins' if not done else f'goes on after step {done}'}; log: {plan.folder.log}", flush=True)
    with seconds.running():
        run_child(
            line, plan.folder.log, plan.folder.next_attempt(), label, done, plan.stage.steps,
            environment(plan.stage.recipe) | wandb_group(config), "the same command goes on from its last checkpoint",
        )  # fmt: skip
    return plan.folder.finish(seconds.total)


def wandb_group(config: PipelineConfig) -> dict[str, str]:
    """The stages of a pipeline are one group, with those of its other seeds; what the user has set stays."""
    return {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", group(Path(config.out).absolute().name))}


class Stopwatch:
    """Wall time of all attempts that ended by themselves, kept in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.total: float = json.loads(file.read_text()) if file.exists() else 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds the time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.total += time.monotonic() - started
            write_json(self.file, self.total)


def link(name: Path, target: Path) -> None:
    """`<out>/models/<stage>` leads to the trained model."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(target)
