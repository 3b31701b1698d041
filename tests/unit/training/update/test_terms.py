"""Which ids and fields the exact terms of the loss read, and that their losses are the parts named."""

from dataclasses import replace

import pytest
import torch
from objectives_reference import reference_divergence
from terms_harness import STORED, F, K, N, log_probs, make_terms
from torch import Tensor

from opd_verl.objective_hooks import ObjectiveInputs
from opd_verl.objectives.names import Divergence, Support, Tail
from opd_verl.schema import GATE, TEACHER_FIELDS, support_fields
from opd_verl.training.update.terms import Terms

TOPK = [Support.student_topk, Support.teacher_topk]
JOINT = [Support.union, Support.intersection, Support.symmetric_difference]
TOKEN_FIELDS = {"old_log_probs", "teacher_log_probs", "advantages", "teacher_entropy"}


def at_columns(p: Tensor, terms: Terms, data: dict[str, Tensor]) -> Tensor:
    return p.gather(-1, terms.columns(data).clamp(min=0))


def test_each_support_has_its_own_fields() -> None:
    assert {support_fields(support).ids for support in TOPK} == {"student_topk_ids", "teacher_topk_ids"}
    assert {support_fields(support).ids for support in JOINT} == {"support_ids"}


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("forward_kl_k", [0, F])
def test_what_is_read(support: Support, forward_kl_k: int) -> None:
    terms = make_terms(support, forward_kl_k)
    expected = {"responses"}
    if support in (*TOPK, *JOINT):
        where = support_fields(support)
        expected |= {where.ids, where.log_q, where.log_p_old, *TOKEN_FIELDS}
    if forward_kl_k:
        expected |= {TEACHER_FIELDS.ids, TEACHER_FIELDS.log_q, GATE}
    assert set(terms.field_names) == expected and len(terms.field_names) == len(expected)
    assert terms.on_support == (support in (*TOPK, *JOINT))
    assert terms.full == (support is Support.full)
    assert terms.any == (terms.on_support or forward_kl_k > 0)


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("forward_kl_k", [0, F])
def test_only_the_named_fields_are_read(
    p: Tensor, data: dict[str, Tensor], support: Support, forward_kl_k: int
) -> None:
    terms = make_terms(support, forward_kl_k)
    named = {name: data[name] for name in terms.field_names}
    losses = terms.losses(at_columns(p, terms, named), named)
    assert set(losses) == ({"divergence"} if terms.on_support else set()) | ({"forward_kl"} if forward_kl_k else set())
    assert all(value.shape == (N,) and value.isfinite().all() for value in losses.values())


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("forward_kl_k", [0, F])
def test_columns_are_the_token_then_the_support_then_the_teachers_top(
    data: dict[str, Tensor], support: Support, forward_kl_k: int
) -> None:
    actual = make_terms(support, forward_kl_k).columns(data).tolist()
    for t in range(N):
        expected = [data["responses"][t].item()]
        if support in TOPK:
            expected += data[support_fields(support).ids][t, :K].tolist()
        if support in JOINT:
            expected += data["support_ids"][t].tolist()
        assert actual[t] == expected + data["teacher_topk_ids"][t, :forward_kl_k].tolist()


def test_a_support_is_no_wider_than_what_is_there(data: dict[str, Tensor]) -> None:
    terms = make_terms(Support.student_topk)
    assert terms.width(data) == K
    assert replace(terms, k=STORED + 3).width(data) == STORED
    assert replace(terms, k=STORED + 3).columns(data).shape == (N, 1 + STORED)
    assert make_terms(Support.union).width(data) == 2 * K


@pytest.mark.parametrize("support", [*TOPK, *JOINT])
def test_losses_are_the_definitions(p: Tensor, data: dict[str, Tensor], support: Support) -> None:
    terms = make_terms(support, F, coefficient=0.7, forward_kl_coefficient=1.3)
    leaf = p.clone().requires_grad_()
    losses = terms.losses(at_columns(leaf, terms, data), data)
    q = log_probs(1).exp()
    naive = p.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for t in range(N):
        ids = [i for i in data[support_fields(support).ids][t, : terms.width(data)].tolist() if i >= 0]
        own = 0.7 * reference_divergence(naive[t].exp(), q[t], ids, Divergence.reverse, Tail.renorm, 0.5)
        top = data["teacher_topk_ids"][t, :F].tolist()
        forward = reference_divergence(naive[t].exp(), q[t], top, Divergence.forward, Tail.renorm_teacher, 0.5)
        forward = 0.7 * 1.3 * data[GATE][t] * forward
        torch.testing.assert_close(losses["divergence"][t], own)
        torch.testing.assert_close(losses["forward_kl"][t], forward)
        total = total + own + forward
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaf)
    (expected,) = torch.autograd.grad(total, naive)
    torch.testing.assert_close(gradient, expected)
    if support in JOINT:
        assert losses["divergence"][1] == 0.0, "no member, no loss"


def test_the_forward_kl_is_nothing_where_the_gate_is_closed(p: Tensor, data: dict[str, Tensor]) -> None:
    terms = make_terms(Support.sampled, F)
    leaf = p.clone().requires_grad_()
    loss = terms.losses(at_columns(leaf, terms, data), data)["forward_kl"]
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    closed = data[GATE] == 0
    assert not loss[closed].any() and not grad[closed].any() and grad[~closed].any(-1).all()


@pytest.mark.parametrize("support", [*TOPK, *JOINT])
def test_what_an_objective_hook_sees(p: Tensor, data: dict[str, Tensor], support: Support) -> None:
    seen: list[ObjectiveInputs] = []

    def hook(inputs: ObjectiveInputs) -> Tensor:
        seen.append(inputs)
        return inputs.log_p

    terms = make_terms(support, F, objective=hook, coefficient=2.0)
    columns = at_columns(p, terms, data)
    assert torch.equal(terms.losses(columns, data)["divergence"], 2.0 * columns[:, 0])
    (inputs,), where, k = seen, support_fields(support), terms.width(data)
    expected = {
        "log_p": columns[:, 0],
        "log_p_old": data["old_log_probs"],
        "log_q": data["teacher_log_probs"],
        "advantage": data["advantages"],
        "log_p_support": columns[:, 1 : 1 + k],
        "log_p_old_support": data[where.log_p_old][:, :k],
        "log_q_support": data[where.log_q][:, :k],
        "member": data[where.ids][:, :k] >= 0,
        "teacher_entropy": data["teacher_entropy"],
    }
    assert all(torch.equal(getattr(inputs, name), value) for name, value in expected.items())
    assert (inputs.eps_low, inputs.eps_high) == (0.2, 0.28)
