"""Support x divergence x tail against float64 references, and the laws of objectives/README.md 8."""

import math
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_reference import reference_divergence, reference_full
from torch import Tensor

from opd_verl.objectives.divergence import REST_FLOOR, full_slope, support_divergence
from opd_verl.objectives.names import Divergence, Support, Tail
from opd_verl.objectives.support import SupportTensors, build_support

V, K, BETA = 9, 4, 0.3
INF = math.inf
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(), (1,), (7,), (3, 1), (2, 5), (0,), (2, 3, 4)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-5}
GRAD_TOLERANCE = TOLERANCE | {torch.bfloat16: 8e-3}  # a bf16 leaf has a bf16 gradient
LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=9)

pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection")
every_divergence = pytest.mark.parametrize("divergence", Divergence)
every_tail = pytest.mark.parametrize("tail", Tail)


def make_logits(*shape: int, seed: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(shape: torch.Size) -> Iterator[tuple[int, ...]]:
    return (tuple(index) for index in torch.ones(shape).nonzero().tolist())


def weighted(value: Tensor) -> Tensor:
    """A sum whose weights keep the elements apart."""
    weights = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=torch.float64)[: value.numel()]
    return (value.double() * weights.view(value.shape)).sum()


def top_blocks(z_p: Tensor, z_q: Tensor) -> list[SupportTensors]:
    log_p, log_q = z_p.detach().log_softmax(-1), z_q.log_softmax(-1)
    ids = [logs.topk(K, dim=-1).indices for logs in (log_p, log_q)]
    return [SupportTensors(i.int(), log_q.gather(-1, i), log_p.gather(-1, i)) for i in ids]


def support_ids(support: Support, z_p: Tensor, z_q: Tensor) -> Tensor:
    """Ids [..., K], -1: none."""
    if support is Support.sampled:
        return z_p.argmin(-1, keepdim=True)
    if support is Support.full:
        return torch.arange(V).expand(z_p.shape)
    return build_support(support, *top_blocks(z_p, z_q)).ids.long()


def at_ids(z: Tensor, ids: Tensor) -> Tensor:
    return z.log_softmax(-1).gather(-1, ids.clamp(min=0))


@every_divergence
@every_tail
@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_composition(divergence: Divergence, tail: Tail, support: Support, dtype: torch.dtype) -> None:
    """Value and gradient in the student's logits; among the rows are a support of one id and an empty one."""
    z_p, z_q = make_logits(3, 4, V, seed=1).to(dtype), make_logits(3, 4, V, seed=2).to(dtype)
    z_p, same = z_p.requires_grad_(), z_p.detach().double().requires_grad_()
    ids = support_ids(support, z_p, z_q).clone()
    ids[0, 0, :], ids[0, 1, 1:] = -1, -1
    value = support_divergence(at_ids(z_p, ids), at_ids(z_q, ids), divergence, tail, BETA, ids >= 0)
    p, q, rows = same.softmax(-1), z_q.double().softmax(-1), ids.tolist()
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for i, j in positions(expected.shape):
        expected[i, j] = reference_divergence(
            p[i, j], q[i, j], [v for v in rows[i][j] if v >= 0], divergence, tail, BETA
        )
    weighted(value).backward()
    weighted(expected).backward()
    assert value.dtype == dtype and value.shape == (3, 4) and value[0, 0] == 0
    assert z_p.grad is not None and same.grad is not None and not z_p.grad[0, 0].any()
    torch.testing.assert_close(value.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(z_p.grad.double(), same.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def some_log_probs(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """K log-probs with sum p < 0.9, rounded to `dtype` before anyone reads them."""
    return (make_logits(*shape, K, seed=seed).log_softmax(-1) - 0.2).to(dtype)


def whole_vector(logs: Tensor) -> Tensor:
    """Probabilities [K + 2] that sum to 1: all that is missing lies on the last id."""
    inside = logs.exp()
    return torch.cat([inside, torch.zeros(1, dtype=torch.float64), 1.0 - inside.sum(-1, keepdim=True)])


@every_divergence
@every_tail
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_in_log_p(divergence: Divergence, tail: Tail, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    log_p, log_q = some_log_probs(shape, 1, dtype).requires_grad_(), some_log_probs(shape, 2, dtype)
    same = log_p.detach().double().requires_grad_()
    member = make_logits(*shape, K, seed=3) > -0.5
    value = support_divergence(log_p, log_q, divergence, tail, BETA, member)
    expected = torch.zeros(shape, dtype=torch.float64)
    for at in positions(expected.shape):
        ids = member[at].nonzero().flatten().tolist()
        p = whole_vector(torch.where(member[at], same[at], -INF))
        q = whole_vector(torch.where(member[at], log_q[at].double(), -INF))
        expected[at] = reference_divergence(p, q, ids, divergence, tail, BETA)
    weighted(value).backward()
    (weighted(expected) + 0.0 * same.sum()).backward()
    assert value.shape == shape and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert log_p.grad is not None and same.grad is not None
    torch.testing.assert_close(value.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(log_p.grad.double(), same.grad, rtol=GRAD_TOLERANCE[dtype], atol=GRAD_TOLERANCE[dtype])


@every_divergence
@every_tail
def test_gradcheck(divergence: Divergence, tail: Tail) -> None:
    log_p, log_q = some_log_probs((3,), 4, torch.float64).requires_grad_(), some_log_probs((3,), 5, torch.float64)
    member = torch.tensor([[True] * K, [True, False, True, False], [False] * K])
    assert torch.autograd.gradcheck(lambda x: support_divergence(x, log_q, divergence, tail, BETA, member), (log_p,))


@pytest.mark.parametrize(
    ("divergence", "tail", "expected"),
    [
        (Divergence.reverse, Tail.renorm, 0.625 * math.log(0.625 / 0.75) + 0.375 * math.log(0.375 / 0.25)),
        (Divergence.reverse, Tail.none, 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.2)),
        (Divergence.reverse, Tail.bucket, 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.2)),  # 0.2 log(0.2 / 0.2)
        (Divergence.reverse, Tail.generalised, 0.5 * math.log(0.5 / 0.6) + 0.1 + 0.3 * math.log(0.3 / 0.2) - 0.1),
        (Divergence.reverse, Tail.renorm_teacher, 0.5 * math.log(0.5 / 0.75) + 0.3 * math.log(0.3 / 0.25)),
        (Divergence.forward, Tail.renorm, 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)),
        (Divergence.forward, Tail.renorm_teacher, 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.3)),
    ],
)
def test_by_hand(divergence: Divergence, tail: Tail, expected: float) -> None:
    """p = (.5, .3, .2), q = (.6, .2, .2), S = {0, 1}; the references too."""
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    value = support_divergence(p[:2].log(), q[:2].log(), divergence, tail)
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert reference_divergence(p, q, [0, 1], divergence, tail, 0.5).item() == pytest.approx(expected, abs=1e-12)


def test_raw_masses_can_be_negative_and_are_not_clamped() -> None:
    p, q = torch.tensor([0.1]), torch.tensor([0.8])
    value = support_divergence(p.log(), q.log(), Divergence.reverse, Tail.none)
    assert value.item() == pytest.approx(0.1 * math.log(0.1 / 0.8), rel=1e-5)


def test_jsd_needs_no_correction() -> None:
    log_p, log_q = some_log_probs((5,), 1, torch.float64), some_log_probs((5,), 2, torch.float64)
    p, q = log_p.exp(), log_q.exp()
    m = BETA * q + (1 - BETA) * p
    with_correction = BETA * (q * (q / m).log() - q + m) + (1 - BETA) * (p * (p / m).log() - p + m)
    for tail in (Tail.generalised, Tail.none):
        value = support_divergence(log_p, log_q, Divergence.jsd, tail, BETA)
        torch.testing.assert_close(value, with_correction.sum(-1))


@pytest.mark.parametrize("beta", [-0.1, 0.0, 1.0, 1.5])
def test_beta_outside_its_range(beta: float) -> None:
    log_p = some_log_probs((), 1, torch.float32)
    with pytest.raises(ValueError, match=r"beta .*\(0, 1\)"):
        support_divergence(log_p, log_p, Divergence.jsd, Tail.renorm, beta)


def test_teacher_is_detached() -> None:
    log_p, log_q = (some_log_probs((3,), seed, torch.float32).requires_grad_() for seed in (1, 2))
    support_divergence(log_p, log_q, Divergence.jsd, Tail.bucket).sum().backward()
    assert log_q.grad is None and log_p.grad is not None and log_p.grad.abs().sum() > 0


# --- zeros and what does not belong to the support


@every_divergence
@every_tail
@pytest.mark.parametrize("garbage", [INF, -INF, math.nan, 1e30, -1e30])
def test_what_is_no_member_leaves_no_trace(divergence: Divergence, tail: Tail, garbage: float) -> None:
    """Not in the value, not in the gradient; a row without members is exactly 0."""
    member = torch.tensor([[True] * K, [True, False, True, False], [False] * K])
    collected = []
    for junk in (-1.0, garbage):
        log_p, log_q = some_log_probs((3,), 1, torch.float32), some_log_probs((3,), 2, torch.float32)
        log_p, log_q = torch.where(member, log_p, junk).requires_grad_(), torch.where(member, log_q, junk)
        with torch.autograd.detect_anomaly(check_nan=True):
            value = support_divergence(log_p, log_q, divergence, tail, BETA, member)
            value.sum().backward()
        assert value[2] == 0 and log_p.grad is not None and log_p.grad.isfinite().all()
        assert not log_p.grad[~member].any() and log_p.grad[member].any()
        collected.append((value.detach(), log_p.grad))
    assert torch.equal(collected[0][0], collected[1][0]) and torch.equal(collected[0][1], collected[1][1])


@every_divergence
@every_tail
def test_a_probability_of_zero_where_the_limit_is_finite(divergence: Divergence, tail: Tail) -> None:
    """p = 0 < q and p = q = 0 (reverse), q = 0 < p and p = q = 0 (forward), all of them (jsd)."""
    p = torch.tensor([0.4, 0.0, 0.0, 0.3, 0.3], dtype=torch.float64)
    q = torch.tensor([0.3, 0.2, 0.0, 0.0, 0.5], dtype=torch.float64)
    drop = {Divergence.reverse: 3, Divergence.forward: 1, Divergence.jsd: None}[divergence]
    ids = [v for v in range(4) if v != drop]
    log_p = p[ids].log().float().requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        value = support_divergence(log_p, q[ids].log().float(), divergence, tail, BETA)
        value.backward()
    expected = reference_divergence(p, q, ids, divergence, tail, BETA)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert log_p.grad is not None and log_p.grad.isfinite().all() and log_p.grad[ids.index(2)] == 0


@pytest.mark.parametrize("divergence", [Divergence.reverse, Divergence.forward])
@every_tail
def test_an_infinite_divergence_is_reported_as_such(divergence: Divergence, tail: Tail) -> None:
    log_p, log_q = torch.tensor([-1.0, -1.5]), torch.tensor([-0.5, -INF])
    sides = (log_p, log_q) if divergence is Divergence.reverse else (log_q, log_p)
    assert support_divergence(*sides, divergence, tail).item() == INF


@pytest.mark.parametrize("divergence", [Divergence.reverse, Divergence.forward])
def test_a_student_without_tail_is_still_pushed_to_the_teachers(divergence: Divergence) -> None:
    """Its tail mass, 3e-8, is below what `1 - sum` resolves: the value is the floor's, descent raises the tail."""
    z = torch.tensor([0.0, 0.0, math.log(2 * 3e-8)], requires_grad=True)
    q = torch.tensor([0.3, 0.3])
    value = support_divergence(z.log_softmax(-1)[:2], q.log(), divergence, Tail.bucket)
    value.backward()
    rest = REST_FLOOR * math.log(REST_FLOOR / 0.4), 0.4 * math.log(0.4 / REST_FLOOR)
    inside = math.log(0.5 / 0.3), 0.6 * math.log(0.3 / 0.5)
    at = 0 if divergence is Divergence.reverse else 1
    assert value.item() == pytest.approx(rest[at] + inside[at], rel=1e-5)
    assert z.grad is not None and z.grad.isfinite().all() and z.grad[2] < 0


# --- identities


@every_divergence
@every_tail
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k_equal_v_is_the_full_vocabulary(divergence: Divergence, tail: Tail, dtype: torch.dtype) -> None:
    z_p, z_q = make_logits(6, V, seed=1).to(dtype).requires_grad_(), make_logits(6, V, seed=2).to(dtype)
    same = z_p.detach().double().requires_grad_()
    order = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    value = support_divergence(z_p.log_softmax(-1)[:, order], z_q.log_softmax(-1)[:, order], divergence, tail, BETA)
    pairs = zip(same.softmax(-1), z_q.double().softmax(-1), strict=True)
    expected = torch.stack([reference_full(p, q, divergence, BETA) for p, q in pairs])
    weighted(value).backward()
    weighted(expected).backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    assert z_p.grad is not None
    torch.testing.assert_close(z_p.grad.double(), same.grad, rtol=1e-5, atol=1e-5)


def gradient_at_equal(z: Tensor, k: int, divergence: Divergence, tail: Tail) -> tuple[float, Tensor]:
    z = z.clone().requires_grad_()
    log_p = z.log_softmax(-1)[:k]
    value = support_divergence(log_p, log_p.detach(), divergence, tail, BETA)
    value.backward()
    assert z.grad is not None
    return value.item(), z.grad


@every_divergence
@every_tail
@pytest.mark.parametrize("k", [1, K, V])
def test_equal_distributions(divergence: Divergence, tail: Tail, k: int) -> None:
    """0 with zero gradient, except where the tail treats the sides differently or leaves the masses raw."""
    z = make_logits(V, seed=7)
    value, grad = gradient_at_equal(z, k, divergence, tail)
    p = z.softmax(-1)
    inside = torch.where(torch.arange(V) < k, p, 0.0)
    mass = inside.sum()
    if tail is Tail.renorm_teacher and divergence is Divergence.forward:
        assert value == pytest.approx(-mass.log().item(), abs=1e-12)
        torch.testing.assert_close(grad, p - inside / mass)
    elif tail is Tail.none and divergence is not Divergence.jsd:
        sign = 1 if divergence is Divergence.reverse else -1
        assert value == pytest.approx(0.0, abs=1e-12)
        torch.testing.assert_close(grad, sign * (inside - p * mass))
    elif tail is Tail.renorm_teacher:
        assert (abs(value) > 1e-3) is (k < V)
    else:
        assert value == pytest.approx(0.0, abs=1e-12)
        torch.testing.assert_close(grad, torch.zeros_like(p), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.randoms(use_true_random=False), st.floats(0.05, 0.95))
def test_laws(logits: list[float], rng: random.Random, beta: float) -> None:
    """Non-negative with a proper tail; the order of the support does not matter; jsd(p, q) is jsd(q, p) mirrored."""
    log_p = torch.tensor(logits).log_softmax(-1)
    log_q = torch.tensor([rng.uniform(-6, 6) for _ in logits]).log_softmax(-1)
    k = rng.randint(1, len(logits))
    ids = rng.sample(range(len(logits)), k)
    a, b, mixed = log_p[ids], log_q[ids], rng.sample(range(k), k)
    for divergence in Divergence:
        for tail in Tail:
            value = support_divergence(a, b, divergence, tail, beta).item()
            if tail in (Tail.renorm, Tail.bucket, Tail.generalised):
                assert value >= -2e-6
            assert support_divergence(a[mixed], b[mixed], divergence, tail, beta).item() == pytest.approx(
                value, abs=1e-5
            )
    for tail in set(Tail) - {Tail.renorm_teacher}:
        value = support_divergence(a, b, Divergence.jsd, tail, beta).item()
        assert support_divergence(b, a, Divergence.jsd, tail, 1 - beta).item() == pytest.approx(value, abs=1e-5)
        assert value <= math.log(2) + 1e-5
        half, swapped = (support_divergence(x, y, Divergence.jsd, tail, 0.5).item() for x, y in ((a, b), (b, a)))
        assert half == pytest.approx(swapped, abs=1e-6)


@pytest.mark.parametrize("tail", [Tail.renorm, Tail.bucket, Tail.generalised])
def test_jsd_between_the_two_kls(tail: Tail) -> None:
    """jsd / beta -> KL(q || p) as beta -> 0 and jsd / (1 - beta) -> KL(p || q) as beta -> 1: value and gradient."""
    small = 1e-5
    for beta, scale, limit in ((small, small, Divergence.forward), (1 - small, small, Divergence.reverse)):
        collected = []
        for divergence, factor in ((Divergence.jsd, 1 / scale), (limit, 1.0)):
            log_p = some_log_probs((4,), 1, torch.float64).requires_grad_()
            value = factor * support_divergence(log_p, some_log_probs((4,), 2, torch.float64), divergence, tail, beta)
            value.sum().backward()
            collected.append((value.detach(), log_p.grad))
        torch.testing.assert_close(collected[0], collected[1], rtol=1e-3, atol=1e-4)


# --- the whole vocabulary in closed form


@every_divergence
@pytest.mark.parametrize("shape", [(*shape, v) for shape in SHAPES for v in (1, V)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_full_slope(divergence: Divergence, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z_p, z_q = make_logits(*shape, seed=1).to(dtype), make_logits(*shape, seed=2).to(dtype)
    same = z_p.double().requires_grad_()
    value, slope = full_slope(z_p.log_softmax(-1), z_q.log_softmax(-1), divergence, BETA)
    expected = torch.zeros(shape[:-1], dtype=torch.float64)
    p, q = same.softmax(-1), z_q.double().softmax(-1)
    for at in positions(expected.shape):
        expected[at] = reference_full(p[at], q[at], divergence, BETA)
    (expected.sum() + 0.0 * same.sum()).backward()
    assert value.dtype == slope.dtype == dtype and value.shape == shape[:-1] and slope.shape == shape
    assert same.grad is not None
    torch.testing.assert_close(value.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(slope.double(), same.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(slope.sum(-1), torch.zeros_like(value), rtol=0, atol=1e-5)


@every_divergence
def test_full_slope_of_bf16_is_computed_in_float32(divergence: Divergence) -> None:
    """Neither input is changed, and there is no graph."""
    log_p, log_q = (make_logits(5, V, seed=seed).log_softmax(-1).bfloat16() for seed in (1, 2))
    kept = log_p.clone(), log_q.clone()
    value, slope = full_slope(log_p.requires_grad_(), log_q, divergence, BETA)
    expected = full_slope(kept[0].float(), kept[1].float(), divergence, BETA)
    assert torch.equal(value, expected[0]) and torch.equal(slope, expected[1]) and not slope.requires_grad
    assert torch.equal(log_p, kept[0]) and torch.equal(log_q, kept[1])


@every_divergence
def test_full_slope_with_ids_of_probability_zero(divergence: Divergence) -> None:
    p = torch.tensor([0.4, 0.0, 0.0, 0.6], dtype=torch.float64)
    q = torch.tensor([0.3, 0.2 if divergence is not Divergence.forward else 0.0, 0.0, 0.7], dtype=torch.float64)
    q = q / q.sum()
    value, slope = full_slope(p.log(), q.log(), divergence, BETA)
    expected = reference_divergence(p, q, [0, 1, 2, 3], divergence, Tail.none, BETA)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert slope.isfinite().all() and not slope[1:3].any()
