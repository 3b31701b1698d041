"""Checks a whole evaluation before a model is loaded: models, benchmarks and every prompt."""

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
        """Digest of the file's bytes."""
        return digest(self.path)


@dataclass(frozen=True)
class PreparedEvaluation:
    """Models and benchmarks by name, and the prompts encoded for each pair of them."""

    models: dict[str, Model]
    benchmarks: dict[str, Benchmark]
    jobs: dict[tuple[str, str], SamplingJob]
    """(model, benchmark): encoded prompts, and the rollouts file."""
    teacher: str | None
    """Name of the model at the top of the gap."""
    before: str | None
    """Name of the model at the bottom of the gap."""


def prepare_evaluation(config: EvalConfig) -> PreparedEvaluation:
    """Opens models and benchmarks and encodes every prompt. Raises ConfigError if one of them cannot be used."""
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
    """Adds the roles' models to the models, and replaces each role's value by its model's name.

    A role's value is the name or path of a model, or the path of another model, which is named after its role.
    """
    models, names = dict(models), dict.fromkeys(roles)
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
        names[role] = name
    if names.get("teacher") and names.get("teacher") == names.get("before"):
        raise ConfigError("before", roles["before"], "is also the teacher", "name the student before its training")
    return models, names


def _key(path: str, config: EvalConfig) -> str:
    """The setting that names a model."""
    return {config.before: "before", config.teacher: "teacher"}.get(path, "models")


def open_benchmarks(paths: Mapping[str, str], limit: int | None) -> dict[str, Benchmark]:
    """Reads the first `limit` rows of each benchmark. Raises ConfigError as `read_rows` does."""
    if AVERAGE in paths:
        problem = f"{AVERAGE!r} is the name of the mean over benchmarks"
        raise ConfigError("benchmarks", paths[AVERAGE], problem, "rename the file")
    return {name: Benchmark(Path(path), read_rows("benchmarks", [Path(path)], limit)) for name, path in paths.items()}
