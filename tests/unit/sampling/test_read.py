"""A model read at given tokens: the real scorer against a plain softmax, and what is read again."""

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

from opd_verl.sampling import read
from opd_verl.sampling.read import MASS_KS, READ_SCHEMA, Reading, ReadSettings, checksum, main, read_model


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The child's work in this process; returns the tasks that it got."""
    tasks: list[dict[str, Any]] = []

    def run_child(module: str, task: dict[str, Any], log: Path) -> None:
        tasks.append(json.loads(json.dumps(task)))
        main(tasks[-1], io.StringIO())

    monkeypatch.setattr(read, "run_child", run_child)
    return tasks


def requests(count: int, width: int = 0) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = {
        "prompt_ids": [rng.integers(2, 96, 3 + index % 4).tolist() for index in range(count)],
        "response_ids": [rng.integers(2, 96, 1 + index % 5).tolist() for index in range(count)],
    }
    table = pa.table(rows, schema=READ_SCHEMA)
    if not width:
        return table
    at_ids = [rng.integers(0, 96, width * len(row)).tolist() for row in rows["response_ids"]]
    return table.append_column("at_ids", pa.array(at_ids, pa.list_(pa.int32())))


def log_probs(path: str, row: dict[str, Any], temperature: float = 1.0) -> torch.Tensor:
    """[R, V] of a plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    with torch.inference_mode():
        logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


def test_the_numbers_are_the_models_own_and_read_once(tmp_path: Path, in_process: list[dict[str, Any]]) -> None:
    path = save_model(tmp_path / "model")
    reading = Reading(requests(40), tmp_path / "entropy" / "bench")
    read_model(path, {"a": 1}, [reading], False, tmp_path / "log")
    column_read = reading.column("entropy")
    for row, ours in zip(reading.requests.to_pylist(), column_read, strict=True):
        log_p = log_probs(path, row)
        assert ours == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), abs=1e-4)
    assert reading.parts.count == 2
    reading.parts.path(1).unlink()
    read_model(path, {"a": 1}, [reading], False, tmp_path / "log")
    assert len(in_process) == 2 and all(
        (a == b).all() for a, b in zip(column_read, reading.column("entropy"), strict=True)
    )
    read_model(path, {"a": 1}, [reading], False, tmp_path / "log")
    assert len(in_process) == 2, "nothing was missing"
    read_model(path, {"a": 2}, [reading], False, tmp_path / "log")
    assert len(in_process) == 3, "another model"


def test_top_k_masses_and_other_ids_at_a_temperature(tmp_path: Path, in_process: list[dict[str, Any]]) -> None:
    path = save_model(tmp_path / "model")
    wanted = ReadSettings(topk=4, masses=True, temperature=0.7)
    reading = Reading(requests(5, width=3), tmp_path / "reading", wanted)
    read_model(path, {}, [reading], False, tmp_path / "log")
    ids, top = reading.column("topk_ids", 4), reading.column("topk_log_probs", 4)
    masses, others = reading.column("masses", len(MASS_KS)), reading.column("at_ids_log_probs", 3)
    sampled = reading.column("log_prob")
    for index, row in enumerate(reading.requests.to_pylist()):
        log_p = log_probs(path, row, 0.7)
        best = log_p.sort(-1, descending=True)
        assert (ids[index] == best.indices[:, :4].numpy()).all()
        assert top[index] == pytest.approx(best.values[:, :4].numpy(), abs=1e-5)
        by_hand = [best.values[:, :k].exp().sum(-1) for k in MASS_KS]
        assert masses[index] == pytest.approx(torch.stack(by_hand, -1).numpy(), abs=1e-5)
        at = torch.tensor(row["at_ids"]).view(-1, 3)
        assert others[index] == pytest.approx(log_p.gather(-1, at).numpy(), abs=1e-5)
        assert sampled[index] == pytest.approx(
            log_p.gather(-1, torch.tensor(row["response_ids"])[:, None])[:, 0].numpy(), abs=1e-5
        )


def test_the_checksum_is_of_the_ids_and_not_of_the_tables_pieces() -> None:
    whole = requests(6, width=2)
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    assert checksum(whole) == checksum(pieces) != checksum(whole.slice(1))
    swapped = pa.table({"prompt_ids": whole["response_ids"], "response_ids": whole["prompt_ids"]}, schema=READ_SCHEMA)
    assert checksum(swapped) != checksum(whole.select(READ_SCHEMA.names))
    shifted = [
        pa.table({"prompt_ids": rows, "response_ids": [[9], [9]]}, schema=READ_SCHEMA)
        for rows in ([[1, 2], [3]], [[1], [2, 3]])
    ]
    assert checksum(shifted[0]) != checksum(shifted[1])
