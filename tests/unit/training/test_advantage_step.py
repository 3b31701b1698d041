"""From rewards to what the actor trains on: weighted advantages, the mixture to the bit, EOPD's gate."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from credit_harness import (
    ALGORITHM,
    EXACT,
    ROLLOUTS,
    ROWS,
    WIDTH,
    make_inputs,
    make_rollouts,
    run,
    verl_config,
)
from torch import Tensor
from verl import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

import opd_verl.training.advantage_estimator  # noqa: F401  (registers)
from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import AdvantageConfig, ForwardKLConfig, MixConfig, ObjectiveConfig, TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.objectives.names import Placement, Truncation
from opd_verl.schema import GATE, OPD_WEIGHTS
from opd_verl.training.advantage_step import TaskRewards, credit


def reverse_kl(inputs: RewardInputs) -> Tensor:
    return torch.where(inputs.mask.bool(), inputs.log_q - inputs.log_p_old, 0.0)


def verls_grpo(inputs: RewardInputs, kept: list[int] | None = None, **algorithm: Any) -> Tensor:
    """Advantages of `recipe=grpo` by verl's own function for the rollouts in `kept`; 0 for the others."""
    kept = list(range(ROWS)) if kept is None else kept
    rollouts = make_rollouts(inputs)
    settings: dict[str, Any] = ALGORITHM | {"adv_estimator": "grpo"} | algorithm
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rollouts.rewards[kept], "response_mask": inputs.mask[kept]},
        non_tensors={"uid": np.array([rollouts.uids[row] for row in kept], dtype=object)},
    )
    names = [rollouts.keys[row] for row in kept]
    actual = compute_advantage_for_multi_trajectories(data, names, num_repeat=ROLLOUTS, **settings)
    result = torch.zeros(ROWS, WIDTH)
    result[kept] = actual.batch["advantages"]
    return result


def same_bits(first: Tensor, second: Tensor) -> bool:
    assert first.dtype == second.dtype == torch.float32
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


def test_distillation_alone_is_the_reward() -> None:
    inputs = make_inputs()
    result = run(OpdConfig(), inputs)
    for name in ("advantages", "returns", "token_level_rewards"):
        assert torch.equal(result.fields[name], reverse_kl(inputs)), name
    assert set(result.fields) == {"advantages", "returns", "token_level_rewards"}
    tokens = inputs.mask.bool()
    assert result.metrics["opd/reward_mean"] == pytest.approx(reverse_kl(inputs)[tokens].mean().item(), rel=1e-5)
    assert result.metrics["opd/truncated_share"] == 0.0


def test_weights_multiply_the_advantage_and_travel_with_it() -> None:
    tokens = TokenConfig(masks=["drop_q3"], weights=["correctness"], low_entropy=0.6, correct=0.5, incorrect=2.0)
    inputs = make_inputs(tokens)
    result = run(OpdConfig(tokens=tokens), inputs)
    reward = reverse_kl(inputs)
    weights = torch.zeros(ROWS, WIDTH)
    for row in range(ROWS):
        for t in range(WIDTH):
            confident_and_suppressed = reward[row, t] < 0 and inputs.student_entropy[row, t] < 0.6
            if inputs.mask[row, t] and not confident_and_suppressed:
                weights[row, t] = 0.5 if inputs.task_score[row] > 0 else 2.0
    assert 0 < (weights > 0).sum() < inputs.mask.sum()
    torch.testing.assert_close(result.fields[OPD_WEIGHTS], weights)
    torch.testing.assert_close(result.fields["advantages"], weights * reward)
    assert torch.equal(result.fields["token_level_rewards"], reward), "r_t itself is not weighted"
    share = (weights > 0).sum() / inputs.mask.sum()
    assert result.metrics["opd/kept_share"] == result.metrics["opd/kept_share/drop_q3"] == pytest.approx(share.item())


def test_shaping_comes_before_weights() -> None:
    tokens = TokenConfig(weights=["correctness"], correct=1.0, incorrect=0.25)
    inputs, advantage = make_inputs(tokens), AdvantageConfig(clamp=0.5, shaping_alpha=0.1)
    actual = run(OpdConfig(tokens=tokens, advantage=advantage), inputs).fields["advantages"]
    clamped = reverse_kl(inputs).clamp(-0.5, 0.5)
    shaped = clamped + torch.minimum(0.1 * inputs.student_entropy, clamped.abs() / 2.0)
    weight = torch.where(inputs.task_score > 0, 1.0, 0.25)[:, None]
    torch.testing.assert_close(actual, shaped * inputs.mask * weight)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("objective", [ObjectiveConfig(), EXACT], ids=["sampled", "exact"])
def test_without_distillation_it_is_verls_grpo_to_the_bit(norm: bool, objective: ObjectiveConfig) -> None:
    inputs = make_inputs()
    opd = OpdConfig(objective=objective, mix=MixConfig(opd=0.0, task=1.0))
    actual = run(opd, inputs, verl_config(norm_adv_by_std_in_grpo=norm)).fields["advantages"]
    expected = verls_grpo(inputs, norm_adv_by_std_in_grpo=norm)
    assert expected.any() and same_bits(actual, expected)


def test_whatever_the_teacher_says_grpo_stays_grpo() -> None:
    tokens = TokenConfig(masks=["top_teacher_entropy"])
    inputs = replace(make_inputs(tokens), log_q=torch.full((ROWS, WIDTH), -1e30))
    actual = run(OpdConfig(tokens=tokens, mix=MixConfig(opd=0.0, task=1.0)), inputs).fields["advantages"]
    assert same_bits(actual, verls_grpo(inputs))


def test_without_a_task_weight_it_is_distillation_to_the_bit() -> None:
    inputs = make_inputs()
    without = run(OpdConfig(), inputs).fields["advantages"]
    assert same_bits(without, run(OpdConfig(mix=MixConfig(task=0.0)), inputs).fields["advantages"])
    other_scores = replace(inputs, task_score=inputs.task_score + math.inf)
    assert same_bits(without, run(OpdConfig(), other_scores).fields["advantages"])


def test_the_mixture_is_the_weighted_sum() -> None:
    tokens = TokenConfig(weights=["correctness"], correct=0.5)
    inputs = make_inputs(tokens)
    actual = run(OpdConfig(tokens=tokens, mix=MixConfig(opd=0.3, task=0.7)), inputs).fields["advantages"]
    weights = torch.where(inputs.task_score > 0, 0.5, 1.0)[:, None]
    torch.testing.assert_close(actual, 0.7 * verls_grpo(inputs) + 0.3 * weights * reverse_kl(inputs))


@pytest.mark.parametrize("opd_weight", [0.0, 0.5, 1.0])
def test_an_exact_objective_leaves_the_policy_loss_to_the_task(opd_weight: float) -> None:
    """Its own weight is in the exact term (`Terms.coefficient`): r_t must not be trained on twice."""
    inputs = make_inputs()
    actual = run(OpdConfig(objective=EXACT, mix=MixConfig(opd=opd_weight, task=2.0)), inputs).fields["advantages"]
    assert same_bits(actual, 2.0 * verls_grpo(inputs))


def test_an_exact_objective_alone_still_gives_hooks_an_advantage() -> None:
    inputs = make_inputs()
    assert torch.equal(run(OpdConfig(objective=EXACT), inputs).fields["advantages"], reverse_kl(inputs))


def test_another_estimator_is_verls_too() -> None:
    inputs = make_inputs()
    actual = run(OpdConfig(mix=MixConfig(opd=0.0, task=1.0, estimator="rloo")), inputs).fields["advantages"]
    for row in range(ROWS):
        others = [i for i in range(ROWS) if i // ROLLOUTS == row // ROLLOUTS and i != row]
        expected = inputs.task_score[row] - inputs.task_score[others].mean()
        torch.testing.assert_close(actual[row], expected * inputs.mask[row])


def cut(*rows: int) -> Tensor:
    return torch.tensor([row in rows for row in range(ROWS)])


def test_dropped_rollouts_leave_the_groups_statistics() -> None:
    """Rows 0 to 2 are of one prompt, of which only row 3 stays; row 5 is of another."""
    gone, tokens = [0, 1, 2, 5], TokenConfig(truncated=Truncation.drop)
    whole = make_inputs(tokens, cut(*gone))
    inputs = replace(whole, mask=whole.mask * ~cut(*gone)[:, None])  # as `reward_inputs` gives it
    result = run(OpdConfig(tokens=tokens, mix=MixConfig(opd=0.0, task=1.0)), inputs)
    kept = [row for row in range(ROWS) if row not in gone]
    assert same_bits(result.fields["advantages"], verls_grpo(inputs, kept))
    assert not torch.equal(result.fields["advantages"][kept], verls_grpo(whole)[kept])
    for name in ("response_mask", "loss_mask"):
        assert torch.equal(result.fields[name], inputs.mask)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus_baseline"])
def test_all_rollouts_dropped_is_nothing_to_learn_from(estimator: str) -> None:
    tokens = TokenConfig(truncated=Truncation.drop)
    inputs = replace(make_inputs(tokens, cut(*range(ROWS))), mask=torch.zeros(ROWS, WIDTH, dtype=torch.int64))
    result = run(OpdConfig(tokens=tokens, mix=MixConfig(task=1.0, estimator=estimator)), inputs)
    assert not result.fields["advantages"].any() and not result.fields[OPD_WEIGHTS].any()
    assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("policy", [Truncation.mask, Truncation.mask_tail])
def test_masked_rollouts_stay_in_the_groups_statistics(policy: Truncation) -> None:
    tokens = TokenConfig(truncated=policy, tail_tokens=2)
    inputs = make_inputs(tokens, cut(0, 5))
    actual = run(OpdConfig(tokens=tokens, mix=MixConfig(opd=0.0, task=1.0)), inputs).fields
    assert same_bits(actual["advantages"], verls_grpo(inputs)) and "response_mask" not in actual
    lost = (actual[OPD_WEIGHTS] == 0) & inputs.mask.bool()
    assert lost[0].any() and lost[5].any() and not lost[[row for row in range(ROWS) if row not in (0, 5)]].any()
    alone = run(OpdConfig(tokens=tokens), inputs).fields["advantages"]
    assert torch.equal(alone, torch.where(lost, 0.0, reverse_kl(inputs)))


def gated(placement: Placement, **changes: Any) -> OpdConfig:
    return OpdConfig(forward_kl=ForwardKLConfig(placement=placement, **changes))


def test_the_gate_is_open_where_the_teacher_is_unsure() -> None:
    inputs = make_inputs()
    result = run(gated(Placement.gated, tau=0.8), inputs)
    assert inputs.teacher_entropy is not None
    expected = (inputs.teacher_entropy > 0.8) & inputs.mask.bool()
    assert 0 < expected.sum() < inputs.mask.sum() and torch.equal(result.fields[GATE], expected.float())
    assert result.metrics["opd/gated_share"] == pytest.approx((expected.sum() / inputs.mask.sum()).item())
    assert torch.equal(result.fields["advantages"], reverse_kl(inputs)), "the gate adds a term; it takes none away"


def test_the_limits_of_tau() -> None:
    inputs = make_inputs()
    nowhere, everywhere = (run(gated(Placement.gated, tau=tau), inputs).fields[GATE] for tau in (math.inf, -math.inf))
    assert not nowhere.any() and torch.equal(everywhere, inputs.mask.float())
    assert torch.equal(everywhere, run(gated(Placement.full), inputs).fields[GATE])
    assert GATE not in run(gated(Placement.none), inputs).fields


def reordered(inputs: RewardInputs, order: list[int]) -> RewardInputs:
    rows = {name: value[order] for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    return replace(inputs, metrics={}, **rows)


@pytest.mark.parametrize("placement", [Placement.gated, Placement.random, Placement.full])
@pytest.mark.parametrize("shuffle", range(3))
def test_the_order_of_the_rows_changes_no_gate(placement: Placement, shuffle: int) -> None:
    inputs = make_inputs()
    opd, rollouts = gated(placement, share=0.5), make_rollouts(inputs)
    base = credit(inputs, rollouts, opd, verl_config(), seed=7).fields[GATE]
    order = random.Random(shuffle).sample(range(ROWS), ROWS)
    assert order != sorted(order)
    moved = TaskRewards([rollouts.keys[i] for i in order], [rollouts.uids[i] for i in order], rollouts.rewards[order])
    actual = credit(reordered(inputs, order), moved, opd, verl_config(), seed=7).fields[GATE]
    assert torch.equal(actual, base[order])


def test_the_seed_draws_the_random_positions() -> None:
    inputs = make_inputs()
    gates = [run(gated(Placement.random, share=0.5), inputs, seed=seed).fields[GATE] for seed in (0, 0, 1)]
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])
    assert not gates[0][inputs.mask == 0].any()


def test_the_order_of_the_rows_changes_no_mixture() -> None:
    inputs = make_inputs()
    opd, rollouts = OpdConfig(mix=MixConfig(task=1.0)), make_rollouts(inputs)
    base = credit(inputs, rollouts, opd, verl_config(), seed=0).fields["advantages"]
    order = random.Random(5).sample(range(ROWS), ROWS)
    moved = TaskRewards([rollouts.keys[i] for i in order], [rollouts.uids[i] for i in order], rollouts.rewards[order])
    actual = credit(reordered(inputs, order), moved, opd, verl_config(), seed=0).fields["advantages"]
    torch.testing.assert_close(actual, base[order])
