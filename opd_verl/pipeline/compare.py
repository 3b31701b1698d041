"""Evaluates every model of the pipeline on the same benchmarks, a row per model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from opd_verl.config.compose import compose_config
from opd_verl.eval.config import EvalConfig, read_config
from opd_verl.eval.estimators import gap_recovery
from opd_verl.eval.prepare import prepare_evaluation
from opd_verl.eval.rows import EvalRow
from opd_verl.eval.run import evaluate
from opd_verl.pipeline.config import PipelineConfig, StageConfig
from opd_verl.pipeline.folders import FinishedStage
from opd_verl.pipeline.prepare import PreparedStage

REVERSE_KL, ENDS = "opd/reverse_kl", 3
START = {"student": "models.student", "teacher": "models.teacher"}
"""Name of the pipeline's starting model by role. The dot keeps it apart from the names of stages."""


@dataclass(frozen=True)
class StageRow:
    """One model on one benchmark. Shares are 0 to 1."""

    model: str
    """The stage that trained the model, or `models.student`, `models.teacher`."""
    benchmark: str
    recipe: str
    student: str
    """The model that the stage started from."""
    teacher: str
    steps: int
    minutes: float
    accuracy: tuple[float, float, float]
    """avg@n: value, and low and high end of its 95% confidence interval."""
    pass_at_n: tuple[float, float, float]
    """pass@n, likewise."""
    tokens: float
    """Mean response length."""
    truncated: float
    """Share of responses cut at the limit."""
    reverse_kl: tuple[float, float] | None
    """Sampled reverse KL, nats per token: mean of the first and of the last three steps; None without a teacher."""
    gap_recovery: float | None
    """Gap recovery rate on this benchmark: (accuracy - student's accuracy) / (teacher's - student's accuracy)."""


def eval_config(config: PipelineConfig, models: Mapping[str, str]) -> EvalConfig:
    """Composes the config of `python -m opd_verl.eval` with the pipeline's `eval.overrides`."""
    # suffix='': the prompts of the pipeline's files are final, and the evaluation must not add its own instruction.
    evaluation = read_config(compose_config("hydra_configs.eval", "eval", ["suffix=''", *config.eval.overrides]))
    evaluation.models, evaluation.out = dict(models), str(Path(config.out) / "eval")
    evaluation.benchmarks = list(config.eval.benchmarks) or [config.data.val]
    evaluation.seed = config.seed
    evaluation.chat_template_kwargs = {**config.chat_template_kwargs, **evaluation.chat_template_kwargs}
    return evaluation


def models_of(
    config: PipelineConfig, stages: list[PreparedStage], results: Mapping[str, FinishedStage]
) -> dict[str, str]:
    """Returns name and folder of every model to compare: the starting models that a stage reads, and all results."""
    read = {model for stage in stages for model in (stage.config.student, stage.config.teacher)}
    starts: dict[str, str] = {name: getattr(config.models, role) for role, name in START.items()}
    trained = {name: result.model for name, result in results.items()}
    return {name: path for name, path in starts.items() if path in read} | trained


def check_eval(config: PipelineConfig, stages: list[PreparedStage]) -> None:
    """Checks the evaluation on the starting models: trained models have their architecture and tokenizer.

    Raises:
        ConfigError: a benchmark or setting of the evaluation cannot work.
    """
    if config.eval.enabled:
        prepare_evaluation(eval_config(config, models_of(config, stages, {})))


def compare(
    config: PipelineConfig, stages: list[PreparedStage], results: Mapping[str, FinishedStage]
) -> list[StageRow]:
    """Evaluates all models. Returns the rows by benchmark, then in the order of the stages.

    Raises:
        ConfigError: a benchmark or setting of the evaluation cannot work.
    """
    rows = evaluate(eval_config(config, models_of(config, stages, results)))
    names = {getattr(config.models, role): name for role, name in START.items()}
    by_name = {stage.name: stage for stage in stages}
    measured = [stage_row(row, by_name.get(row.model), results.get(row.model), names) for row in rows]
    accuracy = {(row.benchmark, row.model): row.accuracy[0] for row in measured}
    return [replace(row, gap_recovery=recovered(row, accuracy)) for row in measured]


def stage_row(
    row: EvalRow, stage: PreparedStage | None, done: FinishedStage | None, names: Mapping[str, str]
) -> StageRow:
    """Makes the row of one model; `names`: names of the starting models by path."""
    config = StageConfig(recipe="", student="") if stage is None else stage.config
    estimates = (row.accuracy, row.pass_at[max(row.pass_at)])
    accuracy, pass_at = ((estimate.value, estimate.low, estimate.high) for estimate in estimates)
    return StageRow(
        model=row.model,
        benchmark=row.benchmark,
        recipe=config.recipe,
        student=names.get(config.student, config.student),
        teacher=names.get(config.teacher or "", config.teacher or ""),
        steps=0 if done is None else done.steps,
        minutes=0.0 if done is None else done.seconds / 60,
        accuracy=accuracy,
        pass_at_n=pass_at,
        tokens=row.length,
        truncated=row.truncated,
        reverse_kl=None if stage is None else first_and_last(stage),
        gap_recovery=None,
    )


def recovered(row: StageRow, accuracy: Mapping[tuple[str, str], float]) -> float | None:
    """Returns the gap recovery rate of a stage; None without a teacher."""
    before, teacher = (accuracy.get((row.benchmark, model)) for model in (row.student, row.teacher))
    return None if before is None or teacher is None else gap_recovery(before, row.accuracy[0], teacher)


def first_and_last(stage: PreparedStage) -> tuple[float, float] | None:
    """Returns the sampled reverse KL of a stage: mean of its first and of its last `ENDS` steps."""
    values = [step[REVERSE_KL] for step in stage.folder.steps() if REVERSE_KL in step]
    return (mean(values[:ENDS]), mean(values[-ENDS:])) if values else None


def as_json(rows: list[StageRow]) -> list[dict[str, object]]:
    """Returns the rows without wall time, so that two runs of the same pipeline give equal files."""
    return [{key: value for key, value in asdict(row).items() if key != "minutes"} for row in rows]
