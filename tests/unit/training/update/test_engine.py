"""The real OpdEngine under real FSDP2 over gloo, 1 and 2 ranks, against a naive float64 forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import (
    CASES,
    HEAD_ROWS,
    HYBRID,
    HYBRID_CASES,
    INFER_LAYOUTS,
    LAYOUTS,
    TOKENIZER_IDS,
    K,
    label,
    make_rows,
    naive_loss,
    next_token_probs,
    paths,
    run_worlds,
    runs,
)
from tiny_models import save_tiny_qwen3, tiny_qwen3
from torch import Tensor
from transformers import Qwen3ForCausalLM

RUNS = [(world, *run) for world in (1, 2) for run in runs(world)]
BASE = "micro1"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Results of every case, by number of ranks."""
    folder: Path = tmp_path_factory.mktemp("engine")
    path = save_tiny_qwen3(folder / "model", HEAD_ROWS, TOKENIZER_IDS)
    return run_worlds(path, folder)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Loss, divergence and gradients in float64, by case and whether the second half is masked."""
    collected = {}
    for name, case in CASES.items():
        for half_masked in (False, True):
            model = double_model()
            rows = make_rows(half_masked, case.opd.objective.support.value)
            loss, divergence = naive_loss(model, rows, case)
            loss.backward()
            grads = {name: weight.grad for name, weight in model.named_parameters()}
            collected[name, half_masked] = {"loss": loss.item(), "divergence": divergence.item(), "grads": grads}
    return collected


def double_model() -> Qwen3ForCausalLM:
    return tiny_qwen3(HEAD_ROWS).double()


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((value.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", INFER_LAYOUTS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("world", [1, 2])
def test_log_prob_pass(worlds: dict[int, Any], world: int, temperature: float, fused: bool, layout: str) -> None:
    actual, model = worlds[world][label(f"infer{temperature}", fused, layout)], double_model()
    for index, row in enumerate(make_rows()):
        with torch.no_grad():
            p = next_token_probs(model, row, temperature)[len(row["prompts"]) - 1 :]
        top = p.topk(K, dim=-1)
        expected = {
            "log_probs": p.gather(-1, row["responses"][:, None])[:, 0].log(),
            "entropy": -(p * p.log()).sum(-1),
            "student_topk_log_probs": top.values.log(),
            "student_log_probs_at_teacher_topk": p.gather(-1, row["teacher_topk_ids"].long()).log(),
        }
        for name, value in expected.items():
            ours = actual[name][index]
            if name in ("log_probs", "entropy"):  # whole sequences; the last position predicts nothing
                ours = ours[len(row["prompts"]) - 1 : -1]
            torch.testing.assert_close(ours.double(), value, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert actual["student_topk_log_probs"][index].shape == (len(row["responses"]), K)
        assert actual["student_topk_ids"][index].dtype == torch.int32
        assert torch.equal(actual["student_topk_ids"][index].long(), top.indices)


@pytest.mark.parametrize(("world", "name", "fused", "layout"), RUNS)
def test_update_equals_naive_gradient(
    worlds: dict[int, Any], reference: dict[Any, Any], world: int, name: str, fused: bool, layout: str
) -> None:
    actual, expected = worlds[world][label(name, fused, layout)], reference[name, layout == "half_masked"]
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    norm = torch.stack([grad.norm() for grad in expected["grads"].values()]).norm().item()
    assert actual["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for weight, grad in expected["grads"].items():
        assert relative(actual["grads"][weight], grad) < 3e-5, weight
    assert not actual["grads"]["lm_head.weight"][TOKENIZER_IDS:].any(), "ids that no side can emit were trained"


@pytest.mark.parametrize(("name", "fused"), HYBRID_CASES)
def test_copies_of_the_model_on_several_nodes_train_as_one(worlds: dict[int, Any], name: str, fused: bool) -> None:
    actual, base = (worlds[world][label(name, fused, BASE)] for world in (HYBRID, 1))
    assert actual["loss"] == pytest.approx(base["loss"], rel=1e-5, abs=1e-6)
    assert actual["grad_norm"] == pytest.approx(base["grad_norm"], rel=1e-5)
    for weight, value in base["weights"].items():
        assert relative(actual["weights"][weight], value.double()) < 1e-6, weight


@pytest.mark.parametrize(("world", "name", "fused", "layout"), [run for run in RUNS if run[3] != "half_masked"])
def test_layout_and_path_change_nothing(
    worlds: dict[int, Any], world: int, name: str, fused: bool, layout: str
) -> None:
    actual, base = worlds[world][label(name, fused, layout)], worlds[1][label(name, True, BASE)]
    assert actual["loss"] == pytest.approx(base["loss"], rel=1e-5, abs=1e-6)
    assert actual["grad_norm"] == pytest.approx(base["grad_norm"], rel=1e-5)
    start = dict(tiny_qwen3(HEAD_ROWS).named_parameters())
    for weight, value in base["weights"].items():
        assert relative(actual["weights"][weight], value.double()) < 1e-6, weight
        assert not torch.equal(value, start[weight]), f"{weight} was not updated"


@pytest.mark.parametrize(("name", "fused"), paths())
def test_a_rank_without_tokens_changes_nothing(worlds: dict[int, Any], name: str, fused: bool) -> None:
    item, two = (worlds[world][label(name, fused, "half_masked")] for world in (1, 2))
    assert two["loss"] == pytest.approx(item["loss"], rel=1e-5, abs=1e-6)
    for weight, value in item["weights"].items():
        assert relative(two["weights"][weight], value.double()) < 1e-6, weight
    assert all(torch.tensor(value).isfinite() for value in two["metrics"].values()), two["metrics"]


@pytest.mark.parametrize(
    ("world", "name", "layout"), [(world, name, layout) for world, name, fused, layout in RUNS
                                  if fused and not name.startswith("sampled")]
)  # fmt: skip
def test_the_metric_is_the_mean_over_eligible_tokens(
    worlds: dict[int, Any], reference: dict[Any, Any], world: int, name: str, layout: str
) -> None:
    metrics = worlds[world][label(name, True, layout)]["metrics"]
    key = "opd/forward_kl" if name == "eopd" else "opd/divergence"
    assert metrics[key] == pytest.approx(reference[name, layout == "half_masked"]["divergence"], rel=1e-5, abs=1e-6)
    assert CASES[name].policy or metrics["actor/pg_loss"] == 0.0


def test_two_ranks_run_every_layout_with_several_objectives() -> None:
    assert {(fused, layout) for _, fused, layout in runs(2)} == {
        (fused, layout) for fused in (True, False) for layout in LAYOUTS
    }
    assert all(len({name for name, _, layout in runs(2) if layout == other}) >= 3 for other in LAYOUTS)
    assert {(name, fused) for name, fused, _ in runs(2)} == set(paths())
