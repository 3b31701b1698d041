"""Several teachers on the real command: a resource pool for each, and a route through agent loop and TransferQueue."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import CONDITIONAL_NAMES, SAMPLED, Run, new_metrics

from opd_verl.hydra_values import hydra_value
from opd_verl.metrics.names import METRICS
from opd_verl.quickstart.paths import Paths

ONE_TEACHER_LESS = "opd.teacher.path=null"


@pytest.fixture(scope="module")
def two_sources(models: Paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training data with two data sources in turn."""
    frame = pd.read_parquet(models.data / "train.parquet")
    frame["data_source"] = [f"additions/{row % 2}" for row in range(len(frame))]
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    frame.to_parquet(path)
    return path


def teachers(models: Paths, trained: str, student: str) -> str:
    """The trained teacher, and the student as it is before the run, each with more keys of its section."""
    paths = [hydra_value(path) for path in (models.teacher, models.student)]
    return f"+opd.teachers={{trained: {{path: {paths[0]}, {trained}}}, student: {{path: {paths[1]}, {student}}}}}"


def test_two_teachers_routed_by_the_data_source(main_ppo: Run, models: Paths, two_sources: Path) -> None:
    """One has devices of its own, the other one shares the trainer's."""
    both = teachers(models, "values: [additions/0]", "values: [additions/1], colocate: true")
    data = f"data.train_files={hydra_value(two_sources)}"
    steps = main_ppo("routed", "opd", 3, *SAMPLED, ONE_TEACHER_LESS, both, data, "trainer.save_freq=-1")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step["opd/teacher_missing_share"] == 0.0 for step in steps), "every token is scored"
    assert set(METRICS) <= new_metrics(steps) <= set(METRICS) | CONDITIONAL_NAMES
    assert steps[0]["opd/reverse_kl"] > 0.0
    ready = [step["opd/teacher_ready_share"] for step in steps]
    assert 0.25 < max(ready) < 0.75, f"one scores while rollouts are generated, and the other one does not: {ready}"
