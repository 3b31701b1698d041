"""The file that verl's `file` logger writes, over several attempts at a run."""

import json
from pathlib import Path

import pytest
from verl.utils.tracking import FileLogger

from opd_verl.tracking import metrics_log
from opd_verl.tracking.metrics_file import merged, read_steps


def test_read_steps_leaves_known_and_unfinished_lines_alone(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert list(read_steps(metrics, 0)) == []
    lines = [json.dumps({"step": i, "data": {"x": i / 2}}) + "\n" for i in (1, 2, 3)]
    metrics.write_text("".join(lines[:2]) + lines[2][:9])
    assert list(read_steps(metrics, 0)) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}]
    assert list(read_steps(metrics, 1)) == [{"step": 2, "x": 1.0}]
    metrics.write_text("".join(lines))
    assert list(read_steps(metrics, 2)) == [{"step": 3, "x": 1.5}]


def attempt(folder: Path, resumed: int, steps: list[int], value: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """An attempt at a run with verl's own logger, without the end that a kill takes away; what it makes again."""
    again = metrics_log.begin(folder, resumed)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(folder / metrics_log.METRICS))
    logger = FileLogger("project", "experiment")
    for step in steps:
        logger.log({"x": value}, step)
    logger.finish()
    return again


def found(folder: Path, *names: str) -> list[tuple[int, float]]:
    return [(step["step"], step["x"]) for step in merged([folder / name for name in names])]


@pytest.mark.parametrize("ended", [True, False])
def test_a_resumed_run_keeps_the_lines_before_and_has_no_step_twice(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 8 with a checkpoint of step 6; killed again at once; the third attempt ends, or is killed."""
    assert attempt(tmp_path, 0, [1, 2, 3, 4, 5, 6, 7, 8], 0.0, monkeypatch) == 0
    assert attempt(tmp_path, 6, [], 1.0, monkeypatch) == 8
    assert attempt(tmp_path, 6, [7, 8, 9], 2.0, monkeypatch) == 0
    expected = [(step, 0.0) for step in range(1, 7)] + [(7, 2.0), (8, 2.0), (9, 2.0)]
    if not ended:
        assert found(tmp_path, metrics_log.BEFORE, metrics_log.METRICS) == expected
        attempt(tmp_path, 9, [], 3.0, monkeypatch)
    metrics_log.end(tmp_path)
    lines = [json.loads(line)["step"] for line in (tmp_path / metrics_log.METRICS).read_text().splitlines()]
    assert found(tmp_path, metrics_log.METRICS) == expected and lines == list(range(1, 10))
    assert not (tmp_path / metrics_log.BEFORE).exists() and not (tmp_path / metrics_log.OLD).exists()


def test_a_new_run_in_the_folder_of_another_puts_its_lines_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(tmp_path, 0, [1, 2], 0.0, monkeypatch)
    attempt(tmp_path, 0, [1], 1.0, monkeypatch)
    metrics_log.end(tmp_path)
    assert found(tmp_path, metrics_log.METRICS) == [(1, 1.0)]
    assert found(tmp_path, metrics_log.OLD) == [(1, 0.0), (2, 0.0)]


def test_a_validation_before_the_first_step_adds_to_the_step_that_was_logged(tmp_path: Path) -> None:
    records = ({"step": 6, "data": {"loss": 1.0, "val": 0.1}}, {"step": 6, "data": {"val": 0.2}})
    for number, record in enumerate(records):
        (tmp_path / str(number)).write_text(json.dumps(record) + "\n")
    assert merged([tmp_path / "0", tmp_path / "1"]) == [{"step": 6, "loss": 1.0, "val": 0.2}]
