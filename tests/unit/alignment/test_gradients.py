"""Local gradients against autograd on the logits, loops and hand-computed cases; float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.alignment.gradients import local
from opd_verl.alignment.gradients.losses import LossSettings, chosen
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Support, Tail

M, S = 7, 5


def drawn(seed: int, tokens: int = S) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both sides, and success probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (torch.randn(M, tokens, dtype=torch.float64, generator=generator) for _ in range(2))
    return logits, teacher.log_softmax(-1), torch.rand(M, tokens, dtype=torch.float64, generator=generator)


ALL = torch.ones(M, S, dtype=torch.bool)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_ideal_gradient_is_that_of_the_expected_success(seed: int) -> None:
    logits, _, p_succ = drawn(seed)
    logits.requires_grad_()
    (expected,) = torch.autograd.grad((logits.softmax(-1) * p_succ).sum(), logits)
    torch.testing.assert_close(local.local_gradient(logits.detach().softmax(-1), p_succ, ALL), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_gkd_is_minus_the_gradient_of_the_kl(seed: int) -> None:
    logits, log_q, _ = drawn(seed)
    logits.requires_grad_()
    log_p = logits.log_softmax(-1)
    (slope,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits)
    gradient = local.local_gradient(log_p.detach().exp(), log_q - log_p.detach(), ALL)
    torch.testing.assert_close(gradient, -slope)


@pytest.mark.parametrize("divergence", list(Divergence))
@pytest.mark.parametrize("tail", list(Tail))
def test_any_objective_is_minus_its_gradient(divergence: Divergence, tail: Tail) -> None:
    """With the whole vocabulary known: `p (f - mean f)` is the gradient by the logits, where that one sums to 0."""
    logits, log_q, _ = drawn(3)
    support = torch.zeros(M, S, dtype=torch.bool)
    support[:, 1:4] = True
    logits.requires_grad_()
    inside = logits.log_softmax(-1)
    loss = support_divergence(inside, log_q, divergence, tail, 0.3, member=support).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    log_p = inside.detach()
    f = local.objective_pull(log_p, log_q, support, divergence, tail, 0.3)
    torch.testing.assert_close(local.local_gradient(log_p.exp(), f, ALL), -slope, rtol=1e-4, atol=1e-6)


def test_what_is_no_member_changes_nothing() -> None:
    """Not with the value it happens to hold, NaN and -inf among them."""
    logits, log_q, p_succ = drawn(5)
    member = ALL.clone()
    member[:, 3:] = False
    p = logits.softmax(-1)
    spoiled = torch.where(member, log_q, torch.nan)
    for f in (log_q - p.log(), spoiled - p.log()):
        gradient = local.local_gradient(p, f, member)
        small = local.local_gradient(p[:, :3] / p[:, :3].sum(-1, keepdim=True), (log_q - p.log())[:, :3], ALL[:, :3])
        torch.testing.assert_close(gradient[:, :3], small)
        assert gradient[:, 3:].eq(0.0).all()
    assert local.success_range(torch.where(member, p_succ, torch.nan), member).isfinite().all()


def test_two_children_agree_wholly_or_not_at_all() -> None:
    """On two children every gradient is a multiple of (1, -1): the cosine is 1 or -1 (why Unmasking's spreads 0.9)."""
    p, p_succ = torch.tensor([[0.7, 0.3]] * 2), torch.tensor([[0.2, 0.9]] * 2)
    log_q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    member = torch.ones(2, 2, dtype=torch.bool)
    ideal = local.local_gradient(p, p_succ, member)
    gkd = local.local_gradient(p, log_q - p.log(), member)
    assert local.cosine(ideal, gkd).tolist() == pytest.approx([1.0, -1.0])
    assert local.teacher_advantage(p, log_q.exp(), p_succ, member).tolist() == pytest.approx([0.14, -0.14])
    assert local.success_range(p_succ, member).tolist() == pytest.approx([0.7, 0.7])


def test_undefined_where_nothing_can_be_said() -> None:
    item = torch.tensor([[True, False], [False, False]])
    p, p_succ = torch.tensor([[0.7, 0.3]] * 2), torch.tensor([[0.2, 0.9]] * 2)
    assert local.teacher_advantage(p, p, p_succ, item).isnan().all()
    assert local.success_range(p_succ, item).isnan().tolist() == [False, True]
    assert local.cosine(torch.zeros(1, 2), torch.ones(1, 2)).isnan().all()


def test_the_rest_of_the_vocabulary_is_one_symbol() -> None:
    log_p = torch.tensor([[0.6, 0.3, 0.0]], dtype=torch.float64).log()
    log_q = torch.tensor([[0.2, 0.3, 0.0]], dtype=torch.float64).log()
    actual = {name: value.item() for name, value in local.apart(log_p, log_q).items()}
    p, q = (0.6, 0.3, 0.1), (0.2, 0.3, 0.5)
    middle = [(mass + other) / 2 for mass, other in zip(p, q, strict=True)]

    def kl(item: tuple[float, ...], other: list[float] | tuple[float, ...]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(item, other, strict=True))

    dot = sum(a * b for a, b in zip(p, q, strict=True))
    assert actual["kl"] == pytest.approx(kl(p, q))
    assert actual["js"] == pytest.approx((kl(p, middle) + kl(q, middle)) / 2)
    assert actual["l2"] == pytest.approx(math.dist(p, q))
    assert actual["similarity"] == pytest.approx(dot / (math.hypot(*p) * math.hypot(*q)))


def test_supports_of_a_loss() -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.1, 0.0]]).log()
    log_q = torch.tensor([[0.1, 0.3, 0.5, 0.0]]).log()
    wanted = {
        Support.student_topk: [True, True, False, False],
        Support.teacher_topk: [False, True, True, False],
        Support.union: [True, True, True, False],
        Support.intersection: [False, True, False, False],
        Support.symmetric_difference: [True, False, True, False],
        Support.full: [True, True, True, False],
    }
    for support, expected in wanted.items():
        assert chosen(LossSettings(support=support, k=2), log_p, log_q).tolist() == [expected]


def test_sampled_gradients_are_sums_over_rollouts() -> None:
    p, weights, took = [0.5, 0.3, 0.2], [1.5, -0.5, 2.0, 0.25], [0, 2, 2, 1]
    member = torch.ones(1, 3, dtype=torch.bool)
    count, weight = torch.zeros(1, 3), torch.zeros(1, 3)
    for item, token in zip(weights, took, strict=True):
        count[0, token] += 1
        weight[0, token] += item
    expected = [sum(w * ((t == j) - p[j]) for w, t in zip(weights, took, strict=True)) / 4 for j in range(3)]
    gradient = local.sampled_gradient(torch.tensor([p]), weight, count, member)
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-6)
