"""Token entropies: the summary by hand, the choice of responses, and the real scorer against a plain softmax."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sampling_harness import save_model
from transformers import AutoModelForCausalLM

from opd_verl.eval import read_entropies as reading_module
from opd_verl.eval.entropies import BINS, chosen, summarise
from opd_verl.eval.read_entropies import SCHEMA, Reading, entropies, main, read_entropies


def test_the_summary_by_hand() -> None:
    found = summarise([np.array([0.0, 0.05, 1.0], np.float32), np.array([-1e-7, 7.5], np.float32)])
    assert (found.responses, found.tokens) == (2, 5)
    assert found.mean == pytest.approx(8.55 / 5)
    assert found.high_share == pytest.approx(2 / 5)
    assert len(found.counts) == BINS + 1 and sum(found.counts) == 5
    assert (found.counts[0], found.counts[10], found.counts[BINS]) == (3, 1, 1)


def test_the_choice_is_seeded_without_repetition_and_in_order() -> None:
    assert chosen(3, 2, None, 0) == chosen(3, 2, 6, 0) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    picked = chosen(50, 4, 30, seed=1)
    assert picked == sorted(set(picked)) == chosen(50, 4, 30, seed=1) != chosen(50, 4, 30, seed=2)
    assert len(picked) == 30 and all(0 <= problem < 50 and 0 <= sample < 4 for problem, sample in picked)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The child's work in this process; returns the tasks that it got."""
    tasks: list[dict[str, Any]] = []

    def run_child(module: str, task: dict[str, Any], log: Path) -> None:
        tasks.append(json.loads(json.dumps(task)))
        main(tasks[-1], io.StringIO())

    monkeypatch.setattr(reading_module, "run_child", run_child)
    return tasks


def requests(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = {
        "prompt_ids": [rng.integers(2, 96, 3 + index % 4).tolist() for index in range(count)],
        "response_ids": [rng.integers(2, 96, 1 + index % 5).tolist() for index in range(count)],
    }
    return pa.table(rows, schema=SCHEMA)


def test_entropies_are_the_models_own_and_read_once(tmp_path: Path, in_process: list[dict[str, Any]]) -> None:
    path = save_model(tmp_path / "model")
    reading = Reading(requests(40), tmp_path / "entropy" / "bench")
    read_entropies(path, {"a": 1}, [reading], False, tmp_path / "log")
    found = entropies(reading)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for row, ours in zip(reading.requests.to_pylist(), found, strict=True):
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        with torch.inference_mode():
            log_p = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double().log_softmax(-1)
        assert ours == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), abs=1e-4)
    assert reading.parts.count == 2
    reading.parts.path(1).unlink()
    read_entropies(path, {"a": 1}, [reading], False, tmp_path / "log")
    assert len(in_process) == 2 and all((a == b).all() for a, b in zip(found, entropies(reading), strict=True))
    read_entropies(path, {"a": 1}, [reading], False, tmp_path / "log")
    assert len(in_process) == 2, "nothing was missing"
    read_entropies(path, {"a": 2}, [reading], False, tmp_path / "log")
    assert len(in_process) == 3, "another model"
