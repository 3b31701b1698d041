"""The mixture with a task reward, to the bit where one weight is 0 (credit/README.md 6)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from opd_verl.credit.advantage import mix_advantages


def same_bits(first: Tensor, second: Tensor) -> bool:
    assert first.dtype == second.dtype == torch.float32
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


@pytest.fixture
def grpo() -> Tensor:
    """verl's own GRPO advantage of two prompts with three rollouts each."""
    mask = torch.ones(6, 5)
    mask[1, 3:], mask[4, 1:] = 0, 0
    rewards = torch.zeros(6, 5)
    rewards[:, 0] = torch.tensor([1.0, 0.0, 0.3, -1.0, 1.0, 0.7])
    uids = np.array(["a", "a", "a", "b", "b", "b"], dtype=object)
    advantage, _ = get_adv_estimator_fn("grpo")(token_level_rewards=rewards, response_mask=mask, index=uids)
    assert advantage.abs().max() > 0.5 and (advantage == 0).any()
    return advantage


@pytest.fixture
def opd() -> Tensor:
    """Rewards with a negative zero, which adding 0 would turn around."""
    reward = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    reward[0, 0] = -0.0
    return reward


@pytest.mark.parametrize("value", [None, 0.5, math.nan, math.inf, -math.inf])
def test_without_distillation_it_is_grpo_to_the_bit(grpo: Tensor, value: float | None) -> None:
    opd = None if value is None else torch.full_like(grpo, value)
    assert same_bits(mix_advantages(grpo, opd, 1.0, 0.0), grpo)
    assert same_bits(mix_advantages(grpo, opd, 0.3, 0.0), 0.3 * grpo)


@pytest.mark.parametrize("value", [None, 0.5, math.nan, math.inf])
def test_without_a_task_reward_it_is_distillation_to_the_bit(opd: Tensor, value: float | None) -> None:
    task = None if value is None else torch.full_like(opd, value)
    mixed = mix_advantages(task, opd, 0.0, 1.0)
    assert same_bits(mixed, opd) and math.copysign(1, mixed[0, 0].item()) == -1
    assert same_bits(mix_advantages(task, opd, 0.0, 0.7), 0.7 * opd)


@given(st.floats(0.01, 5), st.floats(0.01, 5), st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1))
def test_the_mixture(task_weight: float, opd_weight: float, pairs: list[tuple[float, float]]) -> None:
    task, opd = torch.tensor(pairs, dtype=torch.float64).T
    mixed = mix_advantages(task, opd, task_weight, opd_weight).tolist()
    assert mixed == pytest.approx([task_weight * item + opd_weight * other for item, other in pairs], abs=1e-12)


@pytest.mark.parametrize(("task_weight", "opd_weight"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_side_with_a_weight_must_be_there(grpo: Tensor, task_weight: float, opd_weight: float) -> None:
    with pytest.raises(AssertionError):
        mix_advantages(None if task_weight else grpo, grpo if task_weight else None, task_weight, opd_weight)
    if task_weight and opd_weight:
        with pytest.raises(AssertionError):
            mix_advantages(grpo, grpo[:, :1], task_weight, opd_weight)
