"""The objectives against naive float64 references written from objectives/README.md 1 and 3 and credit/README.md 5."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.credit.baseline import expected_reward
from opd_verl.objectives.clipped import MAX_LOG_RATIO, clipped_surrogate
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail

EPS_LOW, EPS_HIGH = 0.2, 0.28
SHAPES = [(), (1,), (7,), (3, 1), (2, 5), (2, 3, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=9)


def log_probs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rounded to `dtype` before anyone reads them, so that functions and references see the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1).to(dtype)


def double(value: Tensor) -> Tensor:
    return value.detach().double().requires_grad_()


def renormalised_reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return support_divergence(log_p, log_q, Divergence.reverse, Tail.renorm)


def naive_surrogate(log_p: Tensor, log_p_old: Tensor, advantages: Tensor) -> Tensor:
    ratio = log_p.exp() / log_p_old.exp()
    clipped = torch.where(ratio < 1 - EPS_LOW, 1 - EPS_LOW, torch.where(ratio > 1 + EPS_HIGH, 1 + EPS_HIGH, ratio))
    return -torch.minimum(ratio * advantages, clipped * advantages)


def naive_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return (p * (p / q).log()).sum(-1)


def assert_same(ours: Callable[[Tensor], Tensor], naive: Callable[[Tensor], Tensor], source: Tensor) -> None:
    """Value and gradient of a weighted sum agree; the weights keep the elements apart."""
    x, y = source.clone().requires_grad_(), double(source)
    value, expected = ours(x), naive(y)
    weights = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=torch.float64).view(value.shape)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    grad_tolerance = 8e-3 if source.dtype == torch.bfloat16 else 1e-5  # a bf16 leaf has a bf16 gradient
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=grad_tolerance, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped_surrogate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    old = (-3 * torch.rand(shape, generator=generator)).to(dtype)
    new = (old + 0.5 * torch.randn(shape, generator=generator)).to(dtype)
    advantages = torch.randn(shape, generator=generator)
    loss, clipped, log_ratio = clipped_surrogate(new, old, advantages, EPS_LOW, EPS_HIGH)
    assert loss.shape == clipped.shape == log_ratio.shape == shape
    assert loss.dtype == torch.float32 and clipped.dtype == torch.bool
    assert_same(
        lambda x: clipped_surrogate(x, old, advantages, EPS_LOW, EPS_HIGH)[0],
        lambda x: naive_surrogate(x, old.double(), advantages.double()),
        new,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "was_clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.2, 2.0, -2.4, -2.4, False),  # inside the range
        (1.5, 2.0, -2.56, 0.0, True),  # above it, A > 0: 1.28 * 2
        (0.5, 2.0, -1.0, -1.0, False),  # below it, A > 0: the pessimistic side
        (0.5, -2.0, 1.6, 0.0, True),  # below it, A < 0: 0.8 * 2
        (1.5, -2.0, 3.0, 3.0, False),  # above it, A < 0
        (50.0, -2.0, 100.0, 100.0, False),  # no dual clip: vanilla with clip_ratio_c = 3 gives 6 and no gradient
        (3.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_clip_by_sign(ratio: float, advantage: float, loss: float, slope: float, was_clipped: bool) -> None:
    log_p = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    value, clipped, log_ratio = clipped_surrogate(
        log_p, torch.tensor([-1.0]), torch.tensor([advantage]), EPS_LOW, EPS_HIGH
    )
    value.sum().backward()
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert log_p.grad is not None and log_p.grad.item() == pytest.approx(slope, rel=1e-5)
    assert clipped.item() is was_clipped
    assert log_ratio.item() == pytest.approx(math.log(ratio), abs=1e-6) and not log_ratio.requires_grad


def test_clipped_surrogate_detaches_and_stays_finite() -> None:
    log_p, old, advantages = (torch.tensor([x], requires_grad=True) for x in (-1.0, -500.0, -1.5))
    value, _, log_ratio = clipped_surrogate(log_p, old, advantages, EPS_LOW, EPS_HIGH)
    value.sum().backward()
    assert value.isfinite().all() and log_p.grad is not None and log_p.grad.isfinite().all()
    assert log_ratio.item() == MAX_LOG_RATIO
    assert old.grad is None and advantages.grad is None


@pytest.mark.parametrize("shape", [(*shape, k) for shape in SHAPES for k in (1, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_renormalised_reverse_kl(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    log_p, log_q = log_probs(*shape, seed=1, dtype=dtype) - 0.5, log_probs(*shape, seed=2, dtype=dtype) - 2.0
    value = renormalised_reverse_kl(log_p, log_q)
    assert value.shape == shape[:-1] and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same(lambda x: renormalised_reverse_kl(x, log_q), lambda x: naive_kl(x, log_q.double()), log_p)


def test_teacher_gets_no_gradient() -> None:
    log_p, log_q = log_probs(3, 4).requires_grad_(), log_probs(3, 4, seed=1).requires_grad_()
    renormalised_reverse_kl(log_p, log_q).sum().backward()
    assert log_q.grad is None and log_p.grad is not None and log_p.grad.abs().sum() > 0
    assert not expected_reward(log_p, log_q).requires_grad


@pytest.mark.parametrize("name", ["kl", "surrogate"])
def test_gradcheck(name: str) -> None:
    """The float32 inside limits the step; the default tolerances of gradcheck assume float64."""
    source = log_probs(3, 4, dtype=torch.float64).requires_grad_()
    other, advantages = log_probs(3, 4, seed=1), log_probs(3, 4, seed=2) + 1.5
    function = {
        "kl": lambda x: renormalised_reverse_kl(x, other).double(),
        "surrogate": lambda x: clipped_surrogate(x, other, advantages, EPS_LOW, EPS_HIGH)[0].double(),
    }[name]
    assert torch.autograd.gradcheck(function, (source,), eps=1e-3, atol=5e-3, rtol=5e-3, nondet_tol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expected_reward(dtype: torch.dtype) -> None:
    log_p, log_q = log_probs(2, 3, 7, dtype=dtype)[..., :5], log_probs(2, 3, 7, seed=1, dtype=dtype)[..., :5]
    p, q = log_p.double().exp(), log_q.double().exp()  # raw masses: the support is not renormalised
    value = expected_reward(log_p, log_q)
    assert value.shape == (2, 3) and value.dtype == torch.float32
    torch.testing.assert_close(value.double(), (p * (q / p).log()).sum(-1), rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(LOGITS, st.randoms(use_true_random=False), st.floats(-20, 20), st.floats(-20, 20))
def test_kl_laws(logits: list[float], rng: random.Random, shift_p: float, shift_q: float) -> None:
    log_p = torch.tensor(logits)
    log_q = torch.tensor([rng.uniform(-6, 6) for _ in logits])
    value = renormalised_reverse_kl(log_p, log_q).item()
    assert value >= -1e-6
    order = rng.sample(range(len(logits)), len(logits))
    assert renormalised_reverse_kl(log_p[order], log_q[order]).item() == pytest.approx(value, abs=1e-5)
    assert renormalised_reverse_kl(log_p + shift_p, log_q + shift_q).item() == pytest.approx(value, abs=5e-5)
    full = (log_p.double().softmax(-1) * (log_p.double().softmax(-1) / log_q.double().softmax(-1)).log()).sum().item()
    assert value == pytest.approx(full, abs=1e-5)  # k = V: the full-vocabulary KL


@settings(max_examples=40, deadline=None)
@given(LOGITS, st.floats(-20, 20))
def test_equal_distributions_give_zero_and_no_gradient(logits: list[float], shift: float) -> None:
    log_p = torch.tensor(logits, requires_grad=True)
    value = renormalised_reverse_kl(log_p, log_p.detach() + shift)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert log_p.grad is not None and log_p.grad.abs().max() < 1e-5


def token_gradients(logits: Tensor, log_q: Tensor, baseline: Tensor | float) -> tuple[Tensor, Tensor]:
    """(p [V], gradient of the 1.1 loss in the logits for each sampled y [V, V]) at ratio 1."""
    log_p_old = logits.log_softmax(-1).detach()
    rows = []
    for y in range(len(logits)):
        x = logits.detach().clone().requires_grad_()
        advantage = log_q[y] - log_p_old[y] - baseline
        loss, *_ = clipped_surrogate(x.log_softmax(-1)[y], log_p_old[y], advantage, EPS_LOW, EPS_HIGH)
        rows.append(torch.autograd.grad(loss, x)[0])
    return log_p_old.exp(), torch.stack(rows)


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_expected_sampled_gradient_is_that_of_the_full_kl(seed: int, with_baseline: bool) -> None:
    """Unmasking B.12 by enumeration: sum_y p(y) grad(1.1) = grad KL(p || q); a baseline leaves it unchanged."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(11, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
    log_q = torch.randn(11, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    p = logits.softmax(-1)
    (p * (p / log_q.exp()).log()).sum().backward()
    baseline = expected_reward(logits.log_softmax(-1), log_q) if with_baseline else 0.0
    weights, grads = token_gradients(logits, log_q, baseline)
    torch.testing.assert_close(weights @ grads, logits.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "low", "high"),
    [
        # The teacher's mass lies where the student hardly goes: all samples share one large negative reward.
        ([*[0.1199] * 8, *[0.0102] * 4], [*[0.005] * 8, *[0.24] * 4], 0.0, 0.7),
        # No law: where a rare token's reward has the other sign, the mean reward is a bad baseline and variance grows.
        ([0.9, *[0.02] * 5], [0.2, *[0.16] * 5], 2.0, 3.0),
    ],
)
def test_variance_with_the_baseline(student: list[float], teacher: list[float], low: float, high: float) -> None:
    logits, log_q = (torch.tensor(x, dtype=torch.float64).log().log_softmax(-1) for x in (student, teacher))
    variance = []
    for baseline in (0.0, expected_reward(logits, log_q)):
        p, grads = token_gradients(logits, log_q, baseline)
        variance.append((p @ (grads - p @ grads).square().sum(-1)).item())
    assert low < variance[1] / variance[0] < high, variance
