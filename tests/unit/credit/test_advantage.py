"""From r_t to the advantage, against double loops and exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.config.sections import AdvantageConfig
from opd_verl.credit.advantage import (
    clamp_reward,
    discounted_suffix_sum,
    reward_to_go,
    shape_advantage,
    shaped_advantage,
)
from opd_verl.credit.inputs import RewardInputs

CELLS = st.tuples(st.floats(-5, 5, width=32), st.booleans())
ROWS = st.integers(1, 11).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1))
GAMMAS = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0])


def naive_reward_to_go(reward: list[float], mask: list[int], gamma: float, length_normalise: bool) -> list[float]:
    collected = []
    for start, present in enumerate(mask):
        total, count = 0.0, 0.0
        for later in range(start, len(mask)):
            total += gamma ** (later - start) * reward[later] * mask[later]  # 0.0 ** 0 is 1.0
            count += gamma ** (later - start) * mask[later]
        collected.append((total / count if length_normalise else total) if present else 0.0)
    return collected


@given(ROWS, GAMMAS, st.booleans())
def test_reward_to_go_is_the_double_loop(
    rows: list[list[tuple[float, bool]]], gamma: float, length_normalise: bool
) -> None:
    reward = [[value for value, _ in row] for row in rows]
    mask = [[int(present) for _, present in row] for row in rows]
    returns = reward_to_go(torch.tensor(reward, dtype=torch.float64), torch.tensor(mask), gamma, length_normalise)
    expected = [naive_reward_to_go(*pair, gamma, length_normalise) for pair in zip(reward, mask, strict=True)]
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 1000, 8192])
@pytest.mark.parametrize("gamma", [0.0, 0.37, 0.999, 1.0])
def test_long_sums_are_exact(length: int, gamma: float) -> None:
    """Against the recursion R_t = r_t + gamma R_{t+1} in exact fractions: first, last and middle position."""
    values = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    sums, scale = discounted_suffix_sum(values, gamma), discounted_suffix_sum(values.abs(), gamma)
    exact, factor = [Fraction(0)], Fraction(gamma).limit_denominator(1000)
    for value in reversed(values.tolist()):
        # Powers of 1000 would grow without end: 2^-200 is beyond what a float64 sees.
        exact.append(round((Fraction(value) + factor * exact[-1]) * 2**200) / Fraction(2**200))
    expected = torch.tensor([float(fraction) for fraction in exact[:0:-1]], dtype=torch.float64)
    assert ((sums - expected).abs() <= 1e-13 * scale).all()


def test_the_input_is_left_alone() -> None:
    values = torch.ones(4, dtype=torch.float64)
    assert discounted_suffix_sum(values, 1.0).tolist() == [4, 3, 2, 1] and values.tolist() == [1] * 4


def test_a_long_rollout_keeps_its_last_rewards() -> None:
    """gamma^8191 is 3e-4 and 0.9^8191 is 0 in float32: dividing by gamma^t would lose the end, here it is exact."""
    reward, mask = torch.zeros(1, 8192), torch.ones(1, 8192)
    reward[0, -1] = 1.0
    returns = reward_to_go(reward, mask, 0.9, False)
    assert returns[0, -3:].tolist() == pytest.approx([0.81, 0.9, 1.0], rel=1e-6)
    returns = reward_to_go(reward, mask, 0.999, False)
    assert returns[0, 0].item() == pytest.approx(0.999**8191, rel=1e-6) and returns.dtype == torch.float32


def test_gamma_one_length_normalised_is_the_mean_of_what_remains() -> None:
    reward, mask = torch.tensor([[1.0, 2.0, 50.0, 6.0, 9.0]]), torch.tensor([[1, 1, 0, 1, 0]])
    assert reward_to_go(reward, mask, 1.0, True).tolist() == [[3.0, 4.0, 0.0, 6.0, 0.0]]
    assert reward_to_go(reward, mask, 1.0, False).tolist() == [[9.0, 8.0, 0.0, 6.0, 0.0]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("length_normalise", [True, False])
def test_masked_rewards_and_padding_do_not_matter(gamma: float, length_normalise: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    reward, mask = torch.randn(3, 6, generator=generator), torch.tensor([[1, 0, 1, 1, 0, 1], [1] * 6, [0] * 6])
    expected = reward_to_go(reward * mask, mask, gamma, length_normalise)
    assert not expected[2].any()
    dirty = torch.where(mask.bool(), reward, math.nan)
    assert torch.equal(reward_to_go(dirty, mask, gamma, length_normalise), expected)
    wide, wide_mask = torch.nn.functional.pad(dirty, (0, 5), value=math.inf), torch.nn.functional.pad(mask, (0, 5))
    returns = reward_to_go(wide, wide_mask, gamma, length_normalise)
    assert torch.equal(returns[:, :6], expected)
    assert not returns[:, 6:].any()


def test_clamp_reward() -> None:
    reward = torch.tensor([-7.0, -2.0, 0.5, 2.5])
    assert clamp_reward(reward, 2.0).tolist() == [-2.0, -2.0, 0.5, 2.0]
    assert clamp_reward(reward, None) is reward


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0, 2), st.floats(1.001, 8))
def test_shape_advantage_is_eopd_eq_11(advantage: float, entropy: float, alpha: float, kappa: float) -> None:
    pair = torch.tensor([advantage, entropy], dtype=torch.float64)
    actual = shape_advantage(pair[0], pair[1], alpha, kappa).item()
    bonus = alpha * entropy if alpha * entropy < abs(advantage) / kappa else abs(advantage) / kappa
    assert actual == pytest.approx(advantage + bonus, abs=1e-12)
    assert actual >= advantage and actual * advantage >= 0


def test_no_gradient_reaches_the_entropy() -> None:
    advantage = torch.tensor([2.0], requires_grad=True)
    entropy = torch.tensor([0.5], requires_grad=True)
    shape_advantage(advantage, entropy, 0.1, 2.0).sum().backward()
    assert entropy.grad is None and advantage.grad is not None


def example(width: int = 7) -> tuple[Tensor, RewardInputs]:
    generator = torch.Generator().manual_seed(4)
    mask = torch.ones(3, width, dtype=torch.int64)
    mask[0, 2], mask[1, 4:] = 0, 0
    reward = 3 * torch.randn(3, width, generator=generator) * mask
    entropy = torch.rand(3, width, generator=generator)
    inputs = RewardInputs(
        log_p_old=torch.zeros(3, width),
        log_q=reward,
        mask=mask,
        student_entropy=entropy,
        task_score=torch.zeros(3),
    )
    return reward, inputs


def test_the_default_is_the_reward_to_the_bit() -> None:
    reward, inputs = example()
    reward = torch.where(inputs.mask.bool(), reward, 0.0)
    reward[2, 0] = -0.0  # what is multiplied or added to could lose its sign
    shaped = shaped_advantage(reward, inputs, AdvantageConfig())
    assert torch.equal(shaped.view(torch.int32), reward.view(torch.int32))


def test_the_order_is_clamp_then_reward_to_go_then_shaping() -> None:
    reward, inputs = example()
    config = AdvantageConfig(clamp=1.0, gamma=0.5, length_normalise=True, shaping_alpha=0.4, shaping_kappa=3.0)
    actual = shaped_advantage(reward, inputs, config)
    for row in range(3):
        mask, entropy = inputs.mask[row].tolist(), inputs.student_entropy[row].tolist()
        clamped = [min(max(value, -1.0), 1.0) for value in reward[row].tolist()]
        to_go = naive_reward_to_go(clamped, mask, 0.5, True)
        shaped = [a + min(0.4 * h, abs(a) / 3.0) for a, h in zip(to_go, entropy, strict=True)]
        expected = [value * present for value, present in zip(shaped, mask, strict=True)]
        assert actual[row].tolist() == pytest.approx(expected, abs=1e-6)
    assert actual.dtype == torch.float32 and not actual[~inputs.mask.bool()].any()


@pytest.mark.parametrize("setting", [{"clamp": 1.0}, {"gamma": 0.9}, {"shaping_alpha": 0.1}])
def test_every_setting_acts(setting: dict[str, float]) -> None:
    reward, inputs = example()
    shaped = shaped_advantage(reward, inputs, AdvantageConfig(**setting))  # type: ignore[arg-type]
    assert not torch.equal(shaped, reward) and not shaped[~inputs.mask.bool()].any()


def test_what_stands_in_masked_entropies_does_not_matter() -> None:
    reward, inputs = example()
    inputs.student_entropy[~inputs.mask.bool()] = math.nan
    assert shaped_advantage(reward, inputs, AdvantageConfig(shaping_alpha=0.1)).isfinite().all()
