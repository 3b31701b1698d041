"""The policy-gradient top-k against its float64 reference, and against the exact gradient that it approximates."""

import math

import pytest
import torch
from objectives_reference import reference_policy_gradient
from torch import Tensor

from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail, Weighting
from opd_verl.objectives.policy_gradient import policy_gradient_topk

V, EPS_LOW, EPS_HIGH = 11, 0.2, 0.28

every_weighting = pytest.mark.parametrize("weighting", Weighting)


def make_logits(*shape: int, seed: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_weighting
@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(weighting: Weighting, drift: float, dtype: torch.dtype) -> None:
    """A drift of 0.3 takes ratios out of the clip range on both sides; rows with one member and with none."""
    z_old, z_q = make_logits(2, 3, V, seed=1), make_logits(2, 3, V, seed=2)
    z_p = z_old + drift * make_logits(2, 3, V, seed=3)
    ids = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(i))[:5] for i in range(6)]).view(
        2, 3, 5
    )
    log_p, log_p_old, log_q = (z.log_softmax(-1).gather(-1, ids).to(dtype) for z in (z_p, z_old, z_q))
    member = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    member[0, 0], member[0, 1], member[0, 1, 2] = False, False, True
    log_p, same = log_p.requires_grad_(), log_p.detach().double().requires_grad_()
    value = policy_gradient_topk(log_p, log_p_old, log_q, weighting, EPS_LOW, EPS_HIGH, member)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for at in [(i, j) for i in range(2) for j in range(3)]:
        p, p_old, q = same[at].exp(), log_p_old[at].double().exp(), log_q[at].double().exp()
        kept = member[at].nonzero().flatten().tolist()
        expected[at] = reference_policy_gradient(p, p_old, q, kept, weighting, EPS_LOW, EPS_HIGH)
    value.sum().backward()
    expected.sum().backward()
    assert value.shape == (2, 3) and value.dtype == torch.float32 and value[0, 0] == 0
    assert log_p.grad is not None and same.grad is not None and not log_p.grad[~member].any()
    if drift:
        assert (same.grad[member] == 0).any() and (same.grad[member] != 0).any()  # clipped and not
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    tolerance = 8e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(log_p.grad.double(), same.grad, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [
        (Weighting.student, (0.625, 0.375)),
        (Weighting.teacher, (0.75, 0.25)),
        (Weighting.uniform, (1.0, 1.0)),
    ],
)
def test_by_hand(weighting: Weighting, weights: tuple[float, float]) -> None:
    """p_old = (.5, .3, ..), q = (.6, .2, ..), ratio 2 and 1: A > 0 is clipped at 1.28, A < 0 is as it is."""
    log_p_old, log_q = torch.tensor([0.5, 0.3]).log(), torch.tensor([0.6, 0.2]).log()
    log_p = (log_p_old + torch.tensor([math.log(2.0), 0.0])).requires_grad_()
    value = policy_gradient_topk(log_p, log_p_old, log_q, weighting, EPS_LOW, EPS_HIGH)
    value.backward()
    advantages = weights[0] * math.log(0.6 / 0.5), weights[1] * math.log(0.2 / 0.3)
    assert value.item() == pytest.approx(-1.28 * advantages[0] - advantages[1], rel=1e-5)
    assert log_p.grad is not None and log_p.grad.tolist() == pytest.approx([0.0, -advantages[1]], rel=1e-5)


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan, 1e30])
@every_weighting
def test_what_is_no_member_leaves_no_trace(weighting: Weighting, garbage: float) -> None:
    member = torch.tensor([[True, False, True], [False, False, False]])
    collected = []
    for junk in (-1.0, garbage):
        sides = [torch.where(member, make_logits(2, 3, seed=seed).float().log_softmax(-1), junk) for seed in (1, 2, 3)]
        log_p = sides[0].requires_grad_()
        value = policy_gradient_topk(log_p, sides[1], sides[2], weighting, EPS_LOW, EPS_HIGH, member)
        value.sum().backward()
        assert value[1] == 0 and log_p.grad is not None and not log_p.grad[~member].any() and log_p.grad[member].any()
        collected.append((value.detach(), log_p.grad))
    assert torch.equal(collected[0][0], collected[1][0]) and torch.equal(collected[0][1], collected[1][1])


def gradients(seed: int, k: int) -> dict[str, Tensor]:
    """At ratio 1, in the logits: this objective's gradient, the exact one, and what should lie between them."""
    z = make_logits(V, seed=seed).requires_grad_()
    log_q = make_logits(V, seed=seed + 100).log_softmax(-1)[:k]
    log_p = z.log_softmax(-1)[:k]
    old = log_p.detach()
    gap, w = old - log_q, old.softmax(-1)
    sums = {
        "policy gradient": policy_gradient_topk(log_p, old, log_q, Weighting.student, EPS_LOW, EPS_HIGH).double(),
        "exact": support_divergence(log_p, log_q, Divergence.reverse, Tail.renorm),
        "definition": (w * gap * log_p).sum(),
        "baseline": (w * gap).sum() * log_p.logsumexp(-1),
    }
    return {name: torch.autograd.grad(value, z, retain_graph=True)[0] for name, value in sums.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 4, 8, V])
def test_it_is_the_exact_gradient_without_the_baseline(seed: int, k: int) -> None:
    """sum w l grad log p = grad KL(pbar || qbar) + lbar grad log m_S; with k = V the mass is 1 and nothing is lost."""
    own = gradients(seed, k)
    torch.testing.assert_close(own["policy gradient"], own["definition"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own["policy gradient"] - own["exact"], own["baseline"], rtol=1e-5, atol=1e-6)
    assert (own["baseline"].norm().item() > 1e-3) is (k < V)


@every_weighting
def test_no_gradient_through_advantage_and_weight(weighting: Weighting) -> None:
    log_p, log_p_old, log_q = (make_logits(3, seed=seed).log_softmax(-1).requires_grad_() for seed in (1, 2, 3))
    policy_gradient_topk(log_p, log_p_old, log_q, weighting, EPS_LOW, EPS_HIGH).backward()
    assert log_p_old.grad is None and log_q.grad is None
    assert log_p.grad is not None and log_p.grad.abs().sum() > 0


@every_weighting
def test_equal_distributions_give_zero_and_no_gradient(weighting: Weighting) -> None:
    log_p = make_logits(4, V, seed=1).log_softmax(-1)[:, :6].requires_grad_()
    value = policy_gradient_topk(log_p, log_p.detach(), log_p.detach(), weighting, EPS_LOW, EPS_HIGH)
    value.sum().backward()
    assert not value.any() and log_p.grad is not None and not log_p.grad.any()


@pytest.mark.parametrize("shape", [(1,), (0, 4), (7, 3), (2, 1, 5)])
def test_shapes_and_order(shape: tuple[int, ...]) -> None:
    log_p, log_p_old, log_q = (make_logits(*shape, seed=seed).log_softmax(-1) for seed in (1, 2, 3))
    order = torch.randperm(shape[-1], generator=torch.Generator().manual_seed(0))
    value = policy_gradient_topk(log_p, log_p_old, log_q, Weighting.student, EPS_LOW, EPS_HIGH)
    mixed = policy_gradient_topk(
        log_p[..., order], log_p_old[..., order], log_q[..., order], Weighting.student, EPS_LOW, EPS_HIGH
    )
    assert value.shape == shape[:-1]
    torch.testing.assert_close(mixed, value)
