"""`opd`, `opd_none` and the `opd` advantage as verl finds them: by name, in its registries, with its aggregation."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn

import opd_verl.training.advantage_estimator
import opd_verl.training.update.policy_loss  # noqa: F401  (registers)

ROWS, WIDTH, EPS_LOW, EPS_HIGH = 6, 5, 0.2, 0.28
SPLITS = [[6], [3, 3], [2, 2, 2], [1] * 6, [1, 5], [4, 2], [1, 2, 3]]


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """A global mini-batch whose ratios lie on both sides of the clip; row 1 is masked out, row lengths differ."""
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(ROWS, WIDTH, generator=generator) - 0.1
    mask = torch.arange(WIDTH) < torch.tensor([5, 0, 1, 3, 2, 4])[:, None]
    mask[0, 2] = False
    return {
        "old_log_prob": old,
        "log_prob": old + 0.6 * torch.randn(ROWS, WIDTH, generator=generator),
        "advantages": torch.randn(ROWS, WIDTH, generator=generator),
        "response_mask": mask,
    }


def actor_config(batch_num_tokens: int | None, dp_size: int = 1, global_batch_size: int | None = ROWS) -> Any:
    info = {"dp_size": dp_size, "batch_num_tokens": batch_num_tokens, "global_batch_size": global_batch_size}
    info["loss_scale_factor"] = None
    return SimpleNamespace(clip_ratio_low=EPS_LOW, clip_ratio_high=EPS_HIGH, global_batch_info=info)


def naive_loss(batch: dict[str, Tensor]) -> float:
    """Token by token from objectives/README.md 1, in Python floats."""
    total = tokens = 0.0
    for row in range(ROWS):
        for t in range(WIDTH):
            if batch["response_mask"][row, t]:
                ratio = math.exp(batch["log_prob"][row, t].item() - batch["old_log_prob"][row, t].item())
                a = batch["advantages"][row, t].item()
                total += max(-ratio * a, -min(max(ratio, 1 - EPS_LOW), 1 + EPS_HIGH) * a)
                tokens += 1
    return total / tokens


def loss_and_grad(batch: dict[str, Tensor], split: list[int], dp_size: int, mode: str = "token-mean") -> Any:
    """verl's sums: micro-batches add up, FSDP takes the mean over ranks (of losses as of gradients)."""
    tokens = int(batch["response_mask"].sum())
    config = actor_config(tokens, dp_size)
    leaf = batch["log_prob"].clone().requires_grad_()
    total = torch.zeros(())
    for rows in torch.arange(ROWS).split(split):
        part = {name: value[rows] for name, value in (batch | {"log_prob": leaf}).items()}
        loss, metrics = get_policy_loss_fn("opd")(**part, loss_agg_mode=mode, config=config)
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        (loss / dp_size).backward()
        total += loss.detach() / dp_size
    return total, leaf.grad


@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_splits_and_ranks_change_nothing(batch: dict[str, Tensor], split: list[int], dp_size: int, mode: str) -> None:
    loss, grad = loss_and_grad(batch, split, dp_size, mode)
    whole, whole_grad = loss_and_grad(batch, [ROWS], 1, mode)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-6, atol=1e-7)


def test_equals_the_formula(batch: dict[str, Tensor]) -> None:
    loss, grad = loss_and_grad(batch, [ROWS], 1)
    assert loss.item() == pytest.approx(naive_loss(batch), rel=1e-6)
    for row, t in [(0, 0), (3, 2), (5, 3)]:
        step = {sign: batch["log_prob"].clone() for sign in (1, -1)}
        for sign, moved in step.items():
            moved[row, t] += sign * 1e-3
        slope = (naive_loss(batch | {"log_prob": step[1]}) - naive_loss(batch | {"log_prob": step[-1]})) / 2e-3
        assert grad[row, t].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert not grad[~batch["response_mask"]].any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.data())
def test_equals_the_formula_on_any_token(log_ratios: list[float], data: st.DataObject) -> None:
    count = len(log_ratios)
    advantages = torch.tensor([data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count))])
    ratio = torch.tensor([log_ratios])
    expected = torch.maximum(-ratio.exp() * advantages, -ratio.exp().clamp(0.8, 1.28) * advantages).mean()
    old = torch.full_like(ratio, -1.5)
    loss, metrics = get_policy_loss_fn("opd")(
        old, old + ratio, advantages, torch.ones_like(ratio).bool(), config=actor_config(count)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert metrics["actor/ppo_kl"] == pytest.approx(-ratio.mean().item(), rel=1e-4, abs=1e-5)


def test_metrics_on_known_tokens() -> None:
    """Ratios 2 (A > 0: clipped), 2 (A < 0: not), 0.5 (A < 0: clipped), 1; the last token is masked."""
    log_ratio = torch.tensor([[2.0, 2.0, 0.5, 1.0, 9.0]]).log()
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]]), torch.tensor([[True] * 4 + [False]])
    _, metrics = get_policy_loss_fn("opd")(
        torch.zeros(1, 5), log_ratio, advantages, mask, config=actor_config(batch_num_tokens=4)
    )
    assert metrics["actor/pg_clipfrac"] == pytest.approx(0.5)
    assert metrics["actor/ppo_kl"] == pytest.approx(-math.log(2) / 4, rel=1e-5)


@pytest.mark.parametrize("mode", ["opd", "opd_none"])
def test_micro_batch_without_tokens(batch: dict[str, Tensor], mode: str) -> None:
    leaf = batch["log_prob"].clone().requires_grad_()
    part = batch | {"log_prob": leaf, "response_mask": torch.zeros(ROWS, WIDTH, dtype=torch.bool)}
    loss, metrics = get_policy_loss_fn(mode)(**part, loss_agg_mode="token-mean", config=actor_config(17, 2))
    (loss + 0.0 * leaf.sum()).backward()
    assert loss.item() == 0.0 and not leaf.grad.any()
    assert metrics == {"actor/pg_clipfrac": 0.0, "actor/ppo_kl": 0.0}
    assert loss.requires_grad == (mode == "opd")  # the graph stays: every rank must run backward


def test_values_under_the_mask_do_not_matter(batch: dict[str, Tensor]) -> None:
    loss, grad = loss_and_grad(batch, [2, 2, 2], 1)
    outside = ~batch["response_mask"]
    noisy = {name: value.masked_fill(outside, 1e4) for name, value in batch.items() if name != "response_mask"}
    noisy_loss, noisy_grad = loss_and_grad(batch | noisy, [2, 2, 2], 1)
    torch.testing.assert_close(noisy_loss, loss)
    torch.testing.assert_close(noisy_grad, grad)


def test_importance_weights_scale_each_token(batch: dict[str, Tensor]) -> None:
    weights = torch.linspace(0.1, 2.0, ROWS * WIDTH).view(ROWS, WIDTH)
    config = actor_config(int(batch["response_mask"].sum()))
    loss, _ = get_policy_loss_fn("opd")(**batch, config=config, rollout_is_weights=weights)
    plain = torch.zeros(ROWS, WIDTH)
    for row, t in batch["response_mask"].nonzero().tolist():
        item = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
        item[row, t] = True
        plain[row, t] = get_policy_loss_fn("opd")(**(batch | {"response_mask": item}), config=actor_config(1))[0]
    expected = agg_loss(plain * weights, batch["response_mask"], "token-mean", **config.global_batch_info)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_opd_none_is_zero_with_verls_metrics(batch: dict[str, Tensor]) -> None:
    config = actor_config(int(batch["response_mask"].sum()))
    loss, metrics = get_policy_loss_fn("opd_none")(**batch, loss_agg_mode="token-mean", config=config)
    mask = batch["response_mask"]
    assert loss.item() == 0.0 and loss.shape == () and not loss.requires_grad
    assert metrics["actor/pg_clipfrac"] == 0.0
    expected = (batch["old_log_prob"] - batch["log_prob"])[mask].mean().item()
    assert metrics["actor/ppo_kl"] == pytest.approx(expected, rel=1e-5)


def test_advantage_is_the_masked_reward() -> None:
    reward = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    advantages, returns = get_adv_estimator_fn("opd")(token_level_rewards=reward, response_mask=mask, config=None)
    expected = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.0, 0.0]])
    assert torch.equal(advantages, expected) and torch.equal(returns, expected)
    assert not advantages.requires_grad
