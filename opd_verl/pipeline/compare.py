"""Measures every model of the pipeline on the same benchmarks, and says what each stage changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from opd_verl.config.compose import compose_config
from opd_verl.eval.config import EvalConfig, read_config
from opd_verl.eval.estimators import gap_recovery
from opd_verl.eval.prepare import prepare_evaluation
from opd_verl.eval.rows import Row
from opd_verl.eval.run import evaluate
from opd_verl.pipeline.config import PipelineConfig, StageConfig
from opd_verl.pipeline.folders import Finished
from opd_verl.pipeline.prepare import StagePlan

REVERSE_KL, ENDS = "opd/reverse_kl", 3
START = {"student": "models.student", "teacher": "models.teacher"}
"""Names of what the pipeline starts from; no stage can have them."""


@dataclass(frozen=True)
class StageRow:
    """A model of the pipeline on one benchmark. Shares are 0 to 1."""

    model: str
    """The stage that made it, or `models.student`, `models.teacher`."""
    benchmark: str
    recipe: str
    student: str
    """What it was trained from."""
    teacher: str
    steps: int
    minutes: float
    accuracy: tuple[float, float, float]
    """avg@n with its 95% confidence interval: value, low, high."""
    pass_at_n: tuple[float, float, float]
    tokens: float
    """Mean response length."""
    truncated: float
    """Share of responses cut at the limit."""
    reverse_kl: tuple[float, float] | None
    """Sampled reverse KL, mean of the first and of the last three training steps, nats per token; None where no teacher
    scored."""
    gap_recovery: float | None
    """(accuracy - that of `student`) / (that of `teacher` - that of `student`)."""


def eval_config(config: PipelineConfig, models: Mapping[str, str]) -> EvalConfig:
    """`python -m opd_verl.eval` with the pipeline's `eval.overrides`, on the prompts that the files hold."""
    found = read_config(compose_config("hydra_configs.eval", "eval", ["suffix=''", *config.eval.overrides]))
    found.models, found.out = dict(models), str(Path(config.out) / "eval")
    found.benchmarks = list(config.eval.benchmarks) or [config.data.val]
    found.seed = config.seed
    found.chat_template_kwargs = {**config.chat_template_kwargs, **found.chat_template_kwargs}
    return found


def models_of(config: PipelineConfig, plans: list[StagePlan], results: Mapping[str, Finished]) -> dict[str, str]:
    """Name and folder of everything to compare: where the stages started, and what they made."""
    read = {model for plan in plans for model in (plan.stage.student, plan.stage.teacher)}
    starts: dict[str, str] = {name: getattr(config.models, role) for role, name in START.items()}
    trained = {name: one.model for name, one in results.items()}
    return {name: path for name, path in starts.items() if path in read} | trained


def check_eval(config: PipelineConfig, plans: list[StagePlan]) -> None:
    """The evaluation could run now, on the models that all others begin as.

    Raises:
        ConfigError: a benchmark or setting of the evaluation cannot work.
    """
    if config.eval.enabled:
        prepare_evaluation(eval_config(config, models_of(config, plans, {})))


def compare(config: PipelineConfig, plans: list[StagePlan], results: Mapping[str, Finished]) -> list[StageRow]:
    """Evaluates all models; rows by benchmark, and in it in the order of the stages.

    Raises:
        ConfigError: a benchmark or setting of the evaluation cannot work.
    """
    rows = evaluate(eval_config(config, models_of(config, plans, results)))
    names = {getattr(config.models, role): name for role, name in START.items()}
    stages = {plan.name: plan for plan in plans}
    measured = [stage_row(row, stages.get(row.model), results.get(row.model), names) for row in rows]
    accuracy = {(row.benchmark, row.model): row.accuracy[0] for row in measured}
    return [replace(row, gap_recovery=recovered(row, accuracy)) for row in measured]


def stage_row(row: Row, plan: StagePlan | None, done: Finished | None, names: Mapping[str, str]) -> StageRow:
    """One measured model; `names`: what the models that the pipeline starts from are called."""
    stage = StageConfig(recipe="", student="") if plan is None else plan.stage
    accuracy, pass_at = ((one.value, one.low, one.high) for one in (row.accuracy, row.pass_at[max(row.pass_at)]))
    return StageRow(
        model=row.model,
        benchmark=row.benchmark,
        recipe=stage.recipe,
        student=names.get(stage.student, stage.student),
        teacher=names.get(stage.teacher or "", stage.teacher or ""),
        steps=0 if done is None else done.steps,
        minutes=0.0 if done is None else done.seconds / 60,
        accuracy=accuracy,
        pass_at_n=pass_at,
        tokens=row.length,
        truncated=row.truncated,
        reverse_kl=None if plan is None else first_and_last(plan),
        gap_recovery=None,
    )


def recovered(row: StageRow, accuracy: Mapping[tuple[str, str], float]) -> float | None:
    """The gap recovery rate of a stage that has a teacher."""
    before, teacher = (accuracy.get((row.benchmark, model)) for model in (row.student, row.teacher))
    return None if before is None or teacher is None else gap_recovery(before, row.accuracy[0], teacher)


def first_and_last(plan: StagePlan) -> tuple[float, float] | None:
    """The sampled reverse KL of a stage, mean of its first and of its last `ENDS` steps."""
    values = [step[REVERSE_KL] for step in plan.folder.steps() if REVERSE_KL in step]
    return (mean(values[:ENDS]), mean(values[-ENDS:])) if values else None


def as_json(rows: list[StageRow]) -> list[dict[str, Any]]:
    """The rows without what differs between two runs of the same pipeline: wall time."""
    return [{key: value for key, value in asdict(row).items() if key != "minutes"} for row in rows]
