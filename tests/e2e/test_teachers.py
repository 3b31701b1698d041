"""Several teachers on the real command: a resource pool for each, and a route through agent loop and TransferQueue.

The run goes on from a checkpoint of GRPO: the way back to OPD.
"""

from pathlib import Path

import pandas as pd
import pytest
from e2e_runs import CONDITIONAL_NAMES, SAMPLED, Run, Steps, new_metrics, updates

from opd_verl.config.overrides import hydra_value
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


@pytest.mark.by_hand  # two minutes that CI has no room for; unit tests route on real Ray actors: test_several.py
def test_two_teachers_routed_by_the_data_source_go_on_from_a_checkpoint_of_grpo(
    main_ppo: Run, models: Paths, two_sources: Path, after_grpo: tuple[Steps, Path]
) -> None:
    """The trained teacher has devices of its own; the other teacher shares the trainer's."""
    folder = after_grpo[1]
    both = teachers(models, "values: [additions/0]", "values: [additions/1], colocate: true")
    data = f"data.train_files={hydra_value(two_sources)}"
    steps = main_ppo(
        "routed", "opd", 7, *SAMPLED, ONE_TEACHER_LESS, both, data, "trainer.resume_mode=auto",
        f"trainer.default_local_dir={folder}",
    )  # fmt: skip
    assert [step["step"] for step in steps] == list(range(1, 8)), "with the lines of the two runs before"
    steps = steps[5:]
    assert updates(folder / "global_step_7") == {7 * 4}, "Adam's moments go with the weights, whatever the recipe"
    assert all(step["actor/lr"] == pytest.approx(after_grpo[0][0]["actor/lr"]) for step in steps)
    assert all(step["opd/teacher_missing_share"] == 0.0 for step in steps), "every token is scored"
    assert set(METRICS) <= new_metrics(steps) <= set(METRICS) | CONDITIONAL_NAMES
    assert steps[0]["opd/reverse_kl"] > 0.0
    ready = [step["opd/teacher_ready_share"] for step in steps]
    assert 0.25 < max(ready) < 0.75, f"only the teacher with its own devices scores early: {ready}"
