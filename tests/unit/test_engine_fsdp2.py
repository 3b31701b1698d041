"""The real OpdEngine under real FSDP2 over gloo, 1 and 2 ranks, against a naive float64 forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import (
    HEAD_ROWS,
    INFER_LAYOUTS,
    LAYOUTS,
    TEMPERATURE,
    TOKENIZER_IDS,
    K,
    make_rows,
    naive_loss,
    next_token_probs,
    run_world,
)
from tiny_models import save_tiny_qwen3, tiny_qwen3
from torch import Tensor
from transformers import Qwen3ForCausalLM

TRAIN_CASES = [f"{objective}-{layout}" for objective in TEMPERATURE for layout in LAYOUTS]
BASE = "micro1"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What every case gave, by number of ranks."""
    folder: Path = tmp_path_factory.mktemp("engine")
    path = save_tiny_qwen3(folder / "model", HEAD_ROWS, TOKENIZER_IDS)
    return {world: run_world(path, folder, world) for world in (1, 2)}


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Loss, divergence and gradients in float64, by objective and whether the second half is masked."""
    found = {}
    for objective in TEMPERATURE:
        for half_masked in (False, True):
            model = double_model()
            loss, divergence = naive_loss(model, make_rows(half_masked), objective)
            loss.backward()
            grads = {name: weight.grad for name, weight in model.named_parameters()}
            found[objective, half_masked] = {"loss": loss.item(), "divergence": divergence.item(), "grads": grads}
    return found


def double_model() -> Qwen3ForCausalLM:
    return tiny_qwen3(HEAD_ROWS).double()


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((value.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", INFER_LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("world", [1, 2])
def test_log_prob_pass(worlds: dict[int, Any], world: int, temperature: float, layout: str) -> None:
    found, model = worlds[world][f"infer-{temperature}-{layout}"], double_model()
    for index, row in enumerate(make_rows()):
        with torch.no_grad():
            p = next_token_probs(model, row, temperature)
        response = p[len(row["prompts"]) - 1 :]
        top = response.topk(K, dim=-1)
        expected = {
            "log_probs": p.gather(-1, row["input_ids"][1:, None])[:, 0].log(),
            "entropy": -(p * p.log()).sum(-1),
            "student_topk_log_probs": top.values.log(),
        }
        for name, value in expected.items():
            ours = found[name][index][: len(value)].double()  # verl's last position predicts nothing
            torch.testing.assert_close(ours, value, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert found["student_topk_log_probs"][index].shape == (len(row["responses"]), K)
        assert found["student_topk_ids"][index].dtype == torch.int32
        assert torch.equal(found["student_topk_ids"][index].long(), top.indices)


@pytest.mark.parametrize("case", TRAIN_CASES)
@pytest.mark.parametrize("world", [1, 2])
def test_update_equals_naive_gradient(worlds: dict[int, Any], reference: dict[Any, Any], world: int, case: str) -> None:
    found = worlds[world][case]
    expected = reference[case.split("-")[0], case.endswith("half_masked")]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    norm = torch.stack([grad.norm() for grad in expected["grads"].values()]).norm().item()
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, grad in expected["grads"].items():
        assert relative(found["grads"][name], grad) < 2e-5, name
    assert not found["grads"]["lm_head.weight"][TOKENIZER_IDS:].any(), "ids that no side can emit were trained"


@pytest.mark.parametrize("case", [case for case in TRAIN_CASES if not case.endswith("half_masked")])
@pytest.mark.parametrize("world", [1, 2])
def test_layout_changes_nothing(worlds: dict[int, Any], world: int, case: str) -> None:
    found, base = worlds[world][case], worlds[1][f"{case.split('-')[0]}-{BASE}"]
    assert found["loss"] == pytest.approx(base["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(base["grad_norm"], rel=1e-5)
    start = dict(tiny_qwen3(HEAD_ROWS).named_parameters())
    for name, weight in base["weights"].items():
        assert relative(found["weights"][name], weight.double()) < 1e-6, name
        assert not torch.equal(weight, start[name]), f"{name} was not updated"


def test_a_rank_without_tokens_changes_nothing(worlds: dict[int, Any]) -> None:
    for objective in TEMPERATURE:
        one, two = (worlds[world][f"{objective}-half_masked"] for world in (1, 2))
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        for name, weight in one["weights"].items():
            assert relative(two["weights"][name], weight.double()) < 1e-6, name
        assert all(torch.tensor(value).isfinite() for value in two["metrics"].values()), two["metrics"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2])
def test_topk_metric_is_the_token_mean(
    worlds: dict[int, Any], reference: dict[Any, Any], world: int, layout: str
) -> None:
    metrics = worlds[world][f"topk-{layout}"]["metrics"]
    expected = reference["topk", layout == "half_masked"]["divergence"]
    assert metrics["opd/topk_reverse_kl"] == pytest.approx(expected, rel=1e-5)
    assert metrics["actor/pg_loss"] == 0.0
