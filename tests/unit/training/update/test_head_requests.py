"""The LM head's answers to one micro-batch: fused against plain, and the switch that stands in for its forward."""

from itertools import product
from typing import Any

import pytest
import torch
from head_harness import LIMIT, F, H, K, N, V, make_update, student
from tiny_models import tiny_qwen3
from torch import Tensor

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ForwardKLConfig, MixConfig, ObjectiveConfig
from opd_verl.fused.rows import HeadWeights
from opd_verl.objectives.names import Divergence, Placement, Support
from opd_verl.schema import (
    TEACHER_FIELDS,
)
from opd_verl.training.update.head_requests import HeadSwitch, LogProbRequest, UpdateRequest


def objective(support: str, **more: Any) -> ObjectiveConfig:
    return ObjectiveConfig(support=Support(support), k=K, **more)


FORWARD = ForwardKLConfig(placement=Placement.gated, k=F)
CASES: dict[str, tuple[OpdConfig, str]] = {
    "student_topk": (OpdConfig(objective=objective("student_topk")), "opd_none"),
    "union with policy": (OpdConfig(objective=objective("union")), "opd"),
    "compat": (OpdConfig(objective=objective("intersection", paper_compat=True)), "opd_none"),
    "eopd": (OpdConfig(forward_kl=FORWARD), "opd"),
    "teacher_topk and forward KL": (OpdConfig(objective=objective("teacher_topk"), forward_kl=FORWARD), "opd_none"),
    "full": (OpdConfig(objective=objective("full", divergence=Divergence.jsd, beta=0.3)), "opd_none"),
    "full, weighed": (OpdConfig(objective=objective("full"), mix=MixConfig(opd=0.4)), "opd_none"),
    "top-k, weighed": (OpdConfig(objective=objective("union"), mix=MixConfig(opd=0.4)), "opd_none"),
    "full with policy": (OpdConfig(objective=objective("full")), "opd"),
}


def log_p_of(hidden: Tensor, head: HeadWeights, temperature: Tensor | None) -> Tensor:
    logits = hidden @ head.weight[:LIMIT].T
    return (logits if temperature is None else logits / temperature[:, None]).log_softmax(-1)


def total(update: UpdateRequest, actual: dict[str, Tensor]) -> Tensor:
    """A scalar of everything that carries a gradient: the exact terms as the loss sums them, log-probs, entropies."""
    if "opd_loss" in actual:
        value = actual["opd_loss"]
    else:
        values = [actual[name] for name in ("divergence", "forward_kl") if name in actual]
        value = sum(((item * update.weights).sum() for item in values), torch.zeros(()))
    for factor, name in ((0.3, "log_p"), (0.2, "entropy")):
        if name in actual and actual[name].requires_grad and update.loss.needs_log_prob_gradient:
            value = value + factor * actual[name].sum()
    return value


TEMPERATURES = [None, torch.linspace(0.6, 1.4, N)]


@pytest.mark.parametrize(
    ("name", "temperature"), product(CASES, TEMPERATURES), ids=lambda x: x if isinstance(x, str) else ""
)
@pytest.mark.parametrize("entropy_coeff", [0.0, 0.1])
def test_the_fused_answer_is_the_plain_one(
    micro_batch: Any, name: str, temperature: Tensor | None, entropy_coeff: float
) -> None:
    update = make_update(micro_batch, *CASES[name], temperature, entropy_coeff=entropy_coeff)
    hidden, head = student()
    fused = update.fused(hidden, head)
    hidden_too, head_too = student()
    log_p = log_p_of(hidden_too, head_too, temperature)
    plain = update.plain(log_p)
    sampled = log_p.gather(-1, update.fields["responses"][:, None].long())[:, 0]
    plain |= {"log_p": sampled, "entropy": -(log_p.exp() * log_p).sum(-1)}
    exact = {"divergence", "forward_kl"} & set(plain)
    assert exact == {"divergence", "forward_kl"} & set(fused) and exact
    for key in (*exact, "log_p", *(["entropy"] if entropy_coeff else [])):
        torch.testing.assert_close(fused[key], plain[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total(update, fused), total(update, {k: plain[k] for k in plain if k in fused}))
    grads = torch.autograd.grad(total(update, fused), [hidden, head.weight])
    wanted = torch.autograd.grad(
        total(update, {k: plain[k] for k in plain if k in fused}), [hidden_too, head_too.weight]
    )
    for gradient, expected in zip(grads, wanted, strict=True):
        assert expected.any()
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert not grads[1][LIMIT:].any(), "rows beyond the tokenizer are not trained"


def test_the_sampled_token_alone_is_answered_with_log_probs(micro_batch: Any) -> None:
    update = make_update(micro_batch, OpdConfig(), "opd", None)
    hidden, head = student()
    answers_given = update.fused(hidden, head)
    assert set(answers_given) == {"log_p"} and answers_given["log_p"].requires_grad
    expected = log_p_of(hidden, head, None).gather(-1, update.fields["responses"][:, None])[:, 0]
    torch.testing.assert_close(answers_given["log_p"], expected)
    assert update.plain(log_p_of(hidden, head, None)) == {}


@pytest.mark.parametrize(
    ("name", "columns", "sum_of_the_engine"),
    [
        ("student_topk", True, True),
        ("union with policy", True, False),
        ("eopd", True, False),
        ("full", False, True),
        ("full with policy", True, True),
    ],
)
def test_who_forms_the_gradient(micro_batch: Any, name: str, columns: bool, sum_of_the_engine: bool) -> None:
    """Without a policy loss the chunks sum the loss themselves; log-probs then carry no gradient of their own."""
    update = make_update(micro_batch, *CASES[name], None)
    answers_given = update.fused(*student())
    assert update.needs_columns is columns and ("opd_loss" in answers_given) is sum_of_the_engine
    assert answers_given["log_p"].requires_grad is (CASES[name][1] == "opd")


@pytest.mark.parametrize("topk", [0, K])
@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["1", "per token"])
def test_the_log_prob_pass(micro_batch: Any, topk: int, with_teacher: bool, temperature: Tensor | None) -> None:
    ids = micro_batch[TEACHER_FIELDS.ids].values() if with_teacher else None
    tokens = micro_batch["responses"].values()
    request = LogProbRequest(tokens, ids, topk, temperature, rows=3)
    hidden, head = student()
    with torch.no_grad():
        log_p = log_p_of(hidden, head, temperature)
        fused, plain = request.fused(hidden, head), request.plain(log_p)
    expected: dict[str, Tensor] = {}
    if topk:
        expected["student_topk_log_probs"] = log_p.sort(-1, descending=True).values[:, :K]
        assert torch.equal(fused["student_topk_ids"], plain["student_topk_ids"])
        assert fused["student_topk_ids"].dtype == plain["student_topk_ids"].dtype == torch.int32
    if ids is not None:
        expected["student_log_probs_at_teacher_topk"] = log_p.gather(-1, ids.long())
    for name, value in expected.items():
        torch.testing.assert_close(plain[name], value)
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-5)
    assert set(plain) == set(expected) | ({"student_topk_ids"} if topk else set())
    assert set(fused) == set(plain) | {"log_p", "entropy"}
    torch.testing.assert_close(fused["log_p"], log_p.gather(-1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused["entropy"], -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)


def test_without_a_request_the_model_gives_its_logits() -> None:
    model: Any = tiny_qwen3(V)
    ids = torch.arange(5)[None]
    before = model(input_ids=ids).logits
    switch = HeadSwitch(model.get_output_embeddings(), LIMIT)
    assert torch.equal(model(input_ids=ids).logits, before)
    switch.request = LogProbRequest(torch.tensor([3, 4]), None, K, None, rows=None)
    switch.request = None
    assert torch.equal(model(input_ids=ids).logits, before)


def test_an_open_request_is_answered_through_the_model() -> None:
    """The model hands the switch's tensors on as its logits, for the selected rows alone."""
    model: Any = tiny_qwen3(V)
    ids = torch.tensor([[2, 5, 3, 4]])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0, 1:3, :LIMIT].log_softmax(-1)
        switch = HeadSwitch(model.get_output_embeddings(), LIMIT)
        switch.request = LogProbRequest(ids[0, 2:], None, K, None, rows=1)
        switch.select = lambda hidden: hidden[0, 1:3]
        output = model(input_ids=ids).logits
    answers_given = switch.answers(output)
    assert set(answers_given) == {"log_p", "entropy", "student_topk_ids", "student_topk_log_probs"}
    torch.testing.assert_close(answers_given["log_p"], log_p.gather(-1, ids[0, 2:, None])[:, 0])
    torch.testing.assert_close(answers_given["student_topk_log_probs"], log_p.topk(K).values)
    with pytest.raises(ValueError, match="zip"):
        switch.answers(output[:1])


def test_a_gradient_comes_back_through_the_answers(micro_batch: Any) -> None:
    """The answers are a tuple of fresh tensors: FSDP's backward hooks do not bear views."""
    update = make_update(micro_batch, *CASES["student_topk"], None)
    hidden, head = student()
    layer: Any = torch.nn.Linear(H, V, bias=False)
    layer.weight.data.copy_(head.weight.detach())
    switch = HeadSwitch(layer, LIMIT)
    switch.request, switch.select = update, lambda values: values[0]
    output = layer(hidden[None])
    assert isinstance(output, tuple) and all(value._base is None for value in output)
    switch.answers(output)["opd_loss"].backward()
    (expected,) = torch.autograd.grad(update.fused(*(pair := student()))["opd_loss"], pair[1].weight)
    assert expected.any()
    torch.testing.assert_close(layer.weight.grad, expected)
