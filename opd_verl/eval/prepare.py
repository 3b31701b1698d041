"""What an evaluation is going to do, checked to the end before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.config.errors import ConfigError
from opd_verl.eval.config import EvalConfig
from opd_verl.eval.rows import AVERAGE
from opd_verl.sampling.judging import load_reward
from opd_verl.sampling.model_names import named
from opd_verl.sampling.prompts import Model, open_model
from opd_verl.sampling.rollouts import SamplingJob, prepare_job
from opd_verl.sampling.rows import read_rows
from opd_verl.utils.files import digest


@dataclass(frozen=True)
class Benchmark:
    """A file of problems."""

    path: Path
    rows: pa.Table

    @property
    def digest(self) -> str:
        """Of the file's bytes."""
        return digest(self.path)


@dataclass(frozen=True)
class PreparedEvaluation:
    """Everything that is needed, by name."""

    models: dict[str, Model]
    benchmarks: dict[str, Benchmark]
    jobs: dict[tuple[str, str], SamplingJob]
    """(model, benchmark): its prompts, encoded, and its rollouts file."""
    teacher: str | None
    before: str | None


def prepare_evaluation(config: EvalConfig) -> PreparedEvaluation:
    """Opens models and benchmarks and encodes every prompt. Raises ConfigError for anything that cannot work."""
    config.check()
    load_reward(config.reward)
    paths, roles = with_roles(named("models", config.models), {"teacher": config.teacher, "before": config.before})
    benchmarks = open_benchmarks(named("benchmarks", config.benchmarks), config.limit)
    models = {
        name: open_model(_key(path, config), path, config.engine.trust_remote_code) for name, path in paths.items()
    }
    folder = Path(config.out) / "rollouts"
    jobs = {
        (model, name): prepare_job(
            opened, benchmark.rows, config.sampling, folder / model / f"{name}.parquet", str(benchmark.path)
        )
        for model, opened in models.items()
        for name, benchmark in benchmarks.items()
    }
    return PreparedEvaluation(models, benchmarks, jobs, roles["teacher"], roles["before"])


def with_roles(
    models: Mapping[str, str], roles: Mapping[str, str | None]
) -> tuple[dict[str, str], dict[str, str | None]]:
    """The models with those of the roles added, and each role's name among them.

    A role's value is a model's name or path, or the path of one more model, which is named after its role.
    """
    models, found = dict(models), dict.fromkeys(roles)
    for role, value in roles.items():
        if value is None:
            continue
        name = value if value in models else next((name for name, path in models.items() if path == value), None)
        if name is None:
            name = role
            if name in models:
                problem = f"another model is named {role!r} already ({models[name]})"
                raise ConfigError(role, value, problem, f"models={{student: {models[name]}}}")
            models[name] = value
        found[role] = name
    if found.get("teacher") and found.get("teacher") == found.get("before"):
        raise ConfigError("before", roles["before"], "is the teacher too", "name the student before its training")
    return models, found


def _key(path: str, config: EvalConfig) -> str:
    """The setting that names a model."""
    return {config.before: "before", config.teacher: "teacher"}.get(path, "models")


def open_benchmarks(paths: Mapping[str, str], limit: int | None) -> dict[str, Benchmark]:
    """The benchmarks' rows, the first `limit` of each. Raises ConfigError as `read_rows`."""
    if AVERAGE in paths:
        raise ConfigError("benchmarks", paths[AVERAGE], f"{AVERAGE!r} is the name of their mean", "rename the file")
    return {name: Benchmark(Path(path), read_rows("benchmarks", [Path(path)], limit)) for name, path in paths.items()}
