"""EOPD's toy experiment: the teachers, the update rule against a loop over plain floats, and the headline."""

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from opd_verl.experiments import toy
from opd_verl.experiments.toy import LEARNING_RATE, SCENARIOS, STEPS, Draws, Reward, Simulation, draw, simulate

LOW, HIGH = SCENARIOS


# numpy draws and float64 alone: every change of the top 1 is the same with AVX512, with AVX2 and without both.
@pytest.fixture(scope="module")
def headline() -> list[Simulation]:
    draws = draw(seeds=64, steps=STEPS)
    return [simulate(draws, scenario.temperature, LEARNING_RATE) for scenario in SCENARIOS]


def naive_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def naive_top(logits: list[float]) -> list[int]:
    """The ten largest, by token id."""
    return sorted(sorted(range(len(logits)), key=lambda x: -logits[x])[:10])


def naive_log_ratio(p_te: list[float], s: list[float], top: list[int], x: int, kind: str) -> float:
    p_student = math.exp(s[x]) / sum(math.exp(logit) for logit in (s if kind == "full" else [s[y] for y in top]))
    p_teacher = p_te[x] / (sum(p_te[y] for y in top) if kind == "top" else 1.0)
    return math.log(p_teacher / p_student)


def naive_run(
    z: list[float], s: list[float], u: list[float], temperature: float, learning_rate: float, kind: str
) -> tuple[list[float], list[bool], list[float]]:
    """The definition, one seed: final logits, top-1 changes, Jaccard distances."""
    p_te, s = naive_softmax([logit / temperature for logit in z]), list(s)
    changed, distances = [], []
    for number in u:
        top, best = naive_top(s), s.index(max(s))
        p_10, x, below = naive_softmax([s[y] for y in top]), 0, 0.0
        while below + p_10[x] <= number and x < 9:
            below, x = below + p_10[x], x + 1
        s[top[x]] += learning_rate * naive_log_ratio(p_te, s, top, top[x], kind)
        after = naive_top(s)
        distances.append(1 - len({*top} & {*after}) / len({*top} | {*after}))
        changed.append(s.index(max(s)) != best)
    return s, changed, distances


def test_a_teacher_has_exactly_the_five_modes_over_standard_normal_logits() -> None:
    z_NV = draw(seeds=400, steps=1).z_NV
    is_mode = np.isin(z_NV, [1.7, 1.9, 2.1, 2.3, 2.5])
    assert z_NV.shape == (400, 80)
    assert (is_mode.sum(axis=1) == 5).all()
    assert (np.sort(z_NV[is_mode].reshape(400, 5), axis=1) == [1.7, 1.9, 2.1, 2.3, 2.5]).all()
    assert len({tuple(row.nonzero()[0]) for row in is_mode}) > 390, "the modes' places are random"
    rest = z_NV[~is_mode]
    assert abs(rest.mean()) < 0.03 and abs(rest.std() - 1) < 0.03


def test_entropy_of_the_two_teachers(headline: list[Simulation]) -> None:
    entropy = {}
    for scenario, run in zip(SCENARIOS, headline, strict=True):
        q_NV = np.exp(run.log_q_NV)
        assert np.allclose(q_NV.sum(axis=1), 1)
        entropy[scenario.temperature] = -(q_NV * np.log(q_NV)).sum(axis=1)
    assert abs(entropy[0.3].mean() - 1.9) < 0.1 and abs(entropy[1.0].mean() - 3.8) < 0.1
    assert entropy[0.3].max() < entropy[1.0].min() < math.log(80)


def test_the_student_starts_standard_normal() -> None:
    s_NV = draw(seeds=400, steps=1).s_NV
    assert s_NV.shape == (400, 80) and abs(s_NV.mean()) < 0.03 and abs(s_NV.std() - 1) < 0.03


@pytest.mark.parametrize("kind", ["paper", "full", "top"])
@pytest.mark.parametrize(("temperature", "learning_rate"), [(0.3, 1.0), (1.0, 1.0), (1.0, 0.1)])
def test_update_rule_against_a_naive_loop(temperature: float, learning_rate: float, kind: str) -> None:
    draws = draw(seeds=3, steps=200)
    run = simulate(draws, temperature, learning_rate, Reward(kind))
    for i in range(3):
        inputs = (draws.z_NV[i].tolist(), draws.s_NV[i].tolist(), draws.u_NT[i].tolist())
        s, changed, distances = naive_run(*inputs, temperature, learning_rate, kind)
        np.testing.assert_allclose(run.s_NV[i], s, rtol=0, atol=1e-9)
        assert run.top1_changed_NT[i].tolist() == changed
        np.testing.assert_allclose(run.change_rate_NT[i], distances, atol=1e-12)


def test_one_step_moves_only_the_sampled_logit_of_the_top_10() -> None:
    draws = draw(seeds=50, steps=1)
    moved_NV = simulate(draws, 1.0, 0.5).s_NV != draws.s_NV
    assert (moved_NV.sum(axis=1) == 1).all()
    assert (draws.s_NV[moved_NV] >= np.sort(draws.s_NV, axis=1)[:, -10]).all()


def test_tokens_are_sampled_in_proportion_to_the_renormalised_top_10() -> None:
    s_V, samples = draw(seeds=1, steps=1).s_NV[0], 20_000
    p10_V = np.where(toy.top_mask(s_V[None])[0], np.exp(s_V), 0)
    u_N = np.random.default_rng(0).random(samples)
    with np.errstate(divide="ignore"):
        log_p10_NV = np.log(np.tile(p10_V / p10_V.sum(), (samples, 1)))
    share_V = np.bincount(toy.sample(log_p10_NV, u_N), minlength=80) / samples
    assert (share_V[p10_V == 0] == 0).all()
    np.testing.assert_allclose(share_V, p10_V / p10_V.sum(), atol=0.015)


@pytest.mark.parametrize("u", [0.0, math.nextafter(1.0, 0.0)])
def test_the_ends_of_the_uniform_draw_pick_tokens_of_the_support(u: float) -> None:
    log_p_NV = np.log(np.array([[0.1, 0.2, 0.7]])).repeat(2, axis=0)
    padded_NV = np.pad(log_p_NV, ((0, 0), (3, 4)), constant_values=-np.inf)
    assert toy.sample(padded_NV, np.array([u, 0.5])).tolist() == [3 if u == 0 else 5, 5]


def test_a_cumulative_sum_that_rounds_below_one_still_picks_a_token() -> None:
    log_p_NV = toy.log_softmax(draw(seeds=200, steps=1).z_NV)
    below_N = np.exp(log_p_NV).cumsum(axis=1)[:, -1] < 1
    assert below_N.any()
    assert (toy.sample(log_p_NV, np.full(200, math.nextafter(1.0, 0.0))) == 79).all()


def test_a_student_equal_to_its_teacher_on_the_top_10_gets_no_reward() -> None:
    z_NV = draw(seeds=4, steps=1).z_NV
    draws = Draws(z_NV, z_NV.copy(), np.random.default_rng(1).random((4, 30)))
    run = simulate(draws, 1.0, 1.0, Reward.TOP)
    np.testing.assert_allclose(run.s_NV, z_NV, atol=1e-12)
    assert not run.top1_changed_NT.any() and not run.change_rate_NT.any()


def test_every_reward_of_that_student_is_the_log_of_the_teachers_mass_there() -> None:
    """The missing mass has a cost: with the paper's reward even a perfect top 10 is pushed down, by the same amount."""
    log_q_NV = toy.log_softmax(draw(seeds=4, steps=1).z_NV)
    mask_NV = toy.top_mask(log_q_NV)
    reward_NV, _ = toy.rewards(log_q_NV, log_q_NV, mask_NV, Reward.PAPER)
    assert (reward_NV[~mask_NV] == 0).all()
    for i in range(4):
        mass = math.fsum(math.exp(log_q) for log_q in log_q_NV[i][mask_NV[i]])
        np.testing.assert_allclose(reward_NV[i][mask_NV[i]], math.log(mass), atol=1e-12)
        assert mass < 0.7


def test_headline_the_flat_teacher_keeps_the_student_changing(headline: list[Simulation]) -> None:
    low, high = (run.top1_changed_NT.sum(axis=1).mean() for run in headline)
    assert high > 5 * low
    assert abs(low - 7.3) < 2 * 1.6 and abs(high - 84.0) < 2 * 16.7


def test_headline_only_the_peaked_teacher_lets_the_top_10_settle(headline: list[Simulation]) -> None:
    (low_first, low_last), (high_first, high_last) = (
        (run.change_rate_NT[:, :62].mean(), run.change_rate_NT[:, -62:].mean()) for run in headline
    )
    assert low_last < 0.2 * low_first
    assert high_last > 0.8 * high_first > 0.1


@pytest.mark.parametrize("kind", [Reward.FULL, Reward.TOP])
def test_with_like_compared_to_like_the_flat_teachers_student_settles_too(kind: Reward) -> None:
    run = simulate(draw(seeds=32, steps=STEPS), HIGH.temperature, LEARNING_RATE, kind)
    assert run.top1_changed_NT.sum(axis=1).mean() < 15
    assert run.change_rate_NT[:, -62:].mean() < 0.01


def test_a_seed_gives_the_same_run_whatever_the_number_of_seeds_and_the_global_state() -> None:
    few = simulate(draw(seeds=2, steps=50), LOW.temperature, 1.0)
    np.random.seed(7)
    random.seed(7)
    many = simulate(draw(seeds=5, steps=50), LOW.temperature, 1.0)
    assert (many.s_NV[:2] == few.s_NV).all() and (many.top1_changed_NT[:2] == few.top1_changed_NT).all()
    assert (many.s_NV[0] != many.s_NV[1]).any()


def test_simulate_leaves_its_draws_alone() -> None:
    draws = draw(seeds=2, steps=20)
    before = draws.s_NV.copy()
    simulate(draws, 1.0, 1.0)
    assert (draws.s_NV == before).all()


def test_the_command_prints_both_scenarios_and_writes_the_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--steps", "40", "--seeds", "4", "--learning-rate", "0.5", "--out", str(tmp_path / "new")]
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    toy.main()
    printed = capsys.readouterr().out
    for scenario in SCENARIOS:
        counts = simulate(draw(4, 40), scenario.temperature, 0.5).top1_changed_NT.sum(axis=1)
        row = next(line for line in printed.splitlines() if scenario.name in line)
        assert f"{counts.mean():.1f} ± {counts.std(ddof=1):.1f}" in row
        assert f"{scenario.paper_mean} ± {scenario.paper_std}" in row
    assert (tmp_path / "new" / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_the_grid_finds_the_step_at_which_the_counts_are_closest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "GRID", (1.0,))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["toy", "--grid", "--steps", "90", "--seeds", "8"])
    toy.main()
    counts = [simulate(draw(8, 90), s.temperature, 1.0).top1_changed_NT.sum(axis=0).cumsum() / 8 for s in SCENARIOS]
    distances = [max(abs(a - 7.3) / 1.6, abs(b - 84.0) / 16.7) for a, b in zip(*counts, strict=True)]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:2] == ["1.0", str(distances.index(min(distances)) + 1)] and cells[-1] == f"{min(distances):.2f}"
