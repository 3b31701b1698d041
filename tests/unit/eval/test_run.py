"""A whole evaluation around an engine that answers without a model: rows, tables, pictures, and going on."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import image
from rich.console import Console
from sampling_harness import FakeGenerate, save_model, write_problems

from opd_verl.eval.config import EvalConfig
from opd_verl.eval.rows import EvalRow, make_row, problem_values, with_gap_recovery
from opd_verl.eval.run import evaluate
from opd_verl.eval.table import print_table, to_markdown
from opd_verl.metrics.estimate import Estimate
from opd_verl.sampling import read
from opd_verl.sampling.generate import GenerationTask
from opd_verl.sampling.shards import Request, Response

ROLLOUTS = pa.table(
    {
        "scores": [[1.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.25, 0.0]],
        "answers": [["3", "4", "3", ""], ["1", "2", "3", "4"]],
        "response_tokens": [[2, 4, 6, 8], [1, 1, 1, 1]],
        "finished": [[True, True, True, False], [True] * 4],
    }
)


def test_a_row_by_hand() -> None:
    row = make_row("m", "b", 4, [1, 2, 4], [problem_values(ROLLOUTS, [1, 2, 4])], 200, 0)
    assert (row.problems, row.n, row.accuracy.value, row.majority.value) == (2, 4, 0.25, 0.5)
    assert {k: value.value for k, value in row.pass_at.items()} == pytest.approx({1: 0.25, 2: 5 / 12, 4: 0.5})
    assert (row.length, row.truncated, row.unanswered) == (3.0, 0.125, 0.125)
    assert row.distinct == pytest.approx((0.5 + 1.0) / 2)
    two_to_one = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert row.answer_entropy == pytest.approx((two_to_one + np.log(4)) / 2)
    assert (row.accuracy.low, row.accuracy.high) == (0.0, 0.5), "one problem at 0, one at 1/2"


def row(model: str, accuracy: float, benchmark: str = "b") -> EvalRow:
    item = Estimate(accuracy, accuracy, accuracy)
    return EvalRow(model, benchmark, 1, 1, item, {1: item}, item, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_gap_recovery_is_of_the_other_models_and_per_benchmark() -> None:
    rows = [row("base", 0.2), row("opd", 0.6), row("big", 1.0), row("base", 0.5, "c"), row("opd", 0.7, "c")]
    actual = with_gap_recovery([*rows, row("big", 0.5, "c")], "base", "big")
    assert [item.gap_recovery for item in actual] == [None, pytest.approx(0.5), None, None, None, None]
    assert with_gap_recovery(rows, None, "big") == rows


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvalConfig:
    """Three models on two benchmarks."""
    monkeypatch.setattr(read, "run_child", lambda module, task, log: read.main(task, io.StringIO()))
    paths = {name: save_model(tmp_path / name, seed) for seed, name in enumerate(("base", "opd", "big"))}
    return EvalConfig(
        models={name: paths[name] for name in ("base", "opd")},
        benchmarks=[str(write_problems(tmp_path / f"{name}.parquet", count)) for name, count in (("x", 7), ("y", 5))],
        teacher=paths["big"],
        before="base",
        out=str(tmp_path / "out"),
        n=4,
        max_tokens=16,
        prompts_per_shard=3,
        entropy_responses=9,
        resamples=200,
        workers=1,
    )


def skilled(work: GenerationTask) -> None:
    """opd repeats itself less than base; big knows more: seeds of other problems per model."""
    shift = {"base": 0, "opd": 1, "big": 2}[Path(work.model).name]

    def sample(requests: Any) -> list[Response]:
        return [one(request, shift) for request in requests]

    def one(request: Request, shift: int) -> Response:
        right = (request.prompt_ids[0] - 3) % 3 if request.seed % 4 < 1 + shift else 7
        return Response([3, 5, 1], f"\\boxed{{{right}}}", True)

    FakeGenerate(sample)(work)


def test_everything_is_measured_and_written(config: EvalConfig) -> None:
    rows = evaluate(config, skilled)
    assert [(item.benchmark, item.model) for item in rows] == [
        (benchmark, model) for benchmark in ("x", "y", "average") for model in ("base", "opd", "teacher")
    ]
    out = Path(config.out)
    table = json.loads((out / "table.json").read_text())
    assert table["teacher"] == "teacher" and table["before"] == "base"
    assert [item["accuracy"]["value"] for item in table["rows"]] == [item.accuracy.value for item in rows]
    by_name = {(item.benchmark, item.model): item for item in rows}
    for benchmark in ("x", "y"):
        actual = by_name[benchmark, "opd"]
        scores = pq.read_table(out / "rollouts" / "opd" / f"{benchmark}.parquet")["scores"].to_pylist()
        assert actual.accuracy.value == pytest.approx(np.mean(scores))
        assert actual.pass_at[4].value == pytest.approx(np.mean([max(row) for row in scores]))
        assert actual.entropy is not None and actual.entropy.responses == 9 and actual.entropy.tokens == 27
        low, high = (by_name[benchmark, name].accuracy.value for name in ("base", "teacher"))
        assert actual.gap_recovery == pytest.approx((actual.accuracy.value - low) / (high - low))
    average = by_name["average", "opd"]
    assert average.accuracy.value == pytest.approx(
        (by_name["x", "opd"].accuracy.value + by_name["y", "opd"].accuracy.value) / 2
    )
    assert average.entropy is None and average.problems == 12 and average.gap_recovery is not None
    for picture in ("pass_at_k.png", "entropy.png"):
        assert image.imread(out / picture).std() > 0.05


def test_the_table_is_the_same_again_elsewhere_and_after_a_kill(config: EvalConfig, tmp_path: Path) -> None:
    evaluate(config, skilled)
    first = (Path(config.out) / "table.json").read_bytes()

    def never(work: GenerationTask) -> None:
        raise AssertionError("everything was there")

    evaluate(config, never)
    assert (Path(config.out) / "table.json").read_bytes() == first
    elsewhere = replace(config, out=str(tmp_path / "elsewhere"), workers=2)

    def dies(work: GenerationTask) -> None:
        if work.model.endswith("opd"):
            raise KeyboardInterrupt
        skilled(work)

    with pytest.raises(KeyboardInterrupt):
        evaluate(elsewhere, dies)
    evaluate(elsewhere, skilled)
    assert (tmp_path / "elsewhere" / "table.json").read_bytes() == first


def test_without_entropies_there_are_none(config: EvalConfig) -> None:
    rows = evaluate(replace(config, entropy=False, teacher=None, before=None, models=config.models["opd"]), skilled)
    assert all(item.entropy is None and item.gap_recovery is None for item in rows)
    assert not (Path(config.out) / "entropy.png").exists()


def test_tables_for_readers(config: EvalConfig) -> None:
    rows = [replace(row("base", 0.25), gap_recovery=0.5), row("opd", 1.0)]
    config = replace(config, n=1, preset="greedy", temperature=0.0)
    text = to_markdown(rows, config)
    assert text.splitlines()[0].startswith("| benchmark | model | avg@1 % | maj@1 % |")
    assert "| b | base | 25.0 [25.0, 25.0] |" in text and text.splitlines()[2].endswith("| 50.0% |")
    assert "token entropy" not in text, "columns without a value are left out"
    assert "preset greedy: n = 1, greedy, at most 16 tokens, seed 0" in text
    console = Console(record=True, width=80, file=io.StringIO())
    print_table(rows, config, console)
    printed = console.export_text()
    assert "25.0 [25.0, 25.0]" in printed and "50.0%" in printed and "maj" not in printed
