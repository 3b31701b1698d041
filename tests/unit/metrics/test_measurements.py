"""Every measurement against loops written from its definition, by hand where it is undefined, and the paper's table."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measurement_reference import Rollout, reference
from torch import Tensor

from opd_verl.metrics.auroc import auroc, weighted_auroc
from opd_verl.metrics.bootstrap import draws, estimate, replicates
from opd_verl.metrics.depth import by_depth, depth_buckets
from opd_verl.metrics.entropy_shape import entropy_correlation, fork_overlap
from opd_verl.metrics.measurements import Observed, measurements
from opd_verl.metrics.overlap import Overlap, measure_overlap
from opd_verl.metrics.quadrants import dest_corr, q3_split, quadrant, quadrant_sums
from opd_verl.metrics.ratio import Ratio, of_rollouts, of_tokens, token_means, undefined
from opd_verl.metrics.thresholds import BINS
from opd_verl.metrics.uncertainty import cumulative_mass, forward_kl_at_forks
from opd_verl.objectives.support import SupportTensors
from opd_verl.probe.measure import histogram

K = 3
ONES = torch.ones(1, 6)


def random_rollouts(seed: int, count: int, vocabulary: int = 7) -> list[Rollout]:
    """Peaked and flat distributions of 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(seed)
    collected = []
    for index in range(count):
        length = int(torch.randint(1, 13, (), generator=generator))
        scale = torch.rand(length, 1, generator=generator, dtype=torch.float64) * 8
        logits = torch.randn(length, vocabulary, generator=generator, dtype=torch.float64) * scale
        other = logits + torch.randn(length, vocabulary, generator=generator, dtype=torch.float64)
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
        collected.append(Rollout(tokens, logits.softmax(-1).tolist(), other.softmax(-1).tolist(), index % 3 == 0))
    return collected


def padded(rows: list[list[float]], width: int) -> Tensor:
    """[B, R] float64 with 9.0 behind each row: nothing may read it."""
    return torch.tensor([row + [9.0] * (width - len(row)) for row in rows], dtype=torch.float64)


def overlap_of(rollouts: list[Rollout], width: int) -> Overlap:
    """Both top-k of every position."""
    vocabulary = len(rollouts[0].p[0])
    sides = []
    for name in ("p", "q"):
        rows = [
            getattr(rollout, name) + [[1 / vocabulary] * vocabulary] * (width - len(rollout.tokens))
            for rollout in rollouts
        ]
        sides.append(torch.tensor(rows, dtype=torch.float64).log())
    blocks = []
    for side in sides:
        ids = side.argsort(dim=-1, descending=True, stable=True)[..., :K]
        blocks.append(SupportTensors(ids.int(), sides[1].gather(-1, ids), sides[0].gather(-1, ids)))
    return measure_overlap(*blocks)


def observed(rollouts: list[Rollout], extra: int = 0) -> Observed:
    """The rollouts as padded tensors."""
    width = max(len(rollout.tokens) for rollout in rollouts) + extra
    log_p = [[math.log(row[y]) for y, row in zip(rollout.tokens, rollout.p, strict=True)] for rollout in rollouts]
    log_q = [[math.log(row[y]) for y, row in zip(rollout.tokens, rollout.q, strict=True)] for rollout in rollouts]
    return Observed(
        log_p=padded(log_p, width),
        log_q=padded(log_q, width),
        student_entropy=padded([rollout.entropies("p") for rollout in rollouts], width),
        teacher_entropy=padded([rollout.entropies("q") for rollout in rollouts], width),
        mask=torch.tensor([[1] * len(rollout.tokens) + [0] * (width - len(rollout.tokens)) for rollout in rollouts]),
        correct=torch.tensor([rollout.correct for rollout in rollouts]),
        overlap=overlap_of(rollouts, width),
    )


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), extra=st.integers(0, 3))
def test_every_measurement_equals_its_definition(seed: int, count: int, extra: int) -> None:
    rollouts = random_rollouts(seed, count)
    actual = {name: ratio.value for name, ratio in measurements(observed(rollouts, extra)).items()}
    assert actual == pytest.approx(reference(rollouts, K), rel=1e-4, abs=1e-5, nan_ok=True)


def test_what_was_not_seen_is_not_measured() -> None:
    seen = observed(random_rollouts(0, 4))
    bare = Observed(seen.log_p, seen.log_q, seen.student_entropy, seen.mask)
    names = set(measurements(bare))
    assert {"reverse_kl", "q3_mass", "student_entropy", "response_length"} <= names
    assert not names & {"rho", "dest_corr", "accuracy", "overlap_ratio", "truncated_share", "forward_kl_at_forks"}
    assert set(measurements(bare)) < set(measurements(seen))


def test_rho_is_undefined_for_a_constant_entropy_and_a_single_token() -> None:
    constant, rising = torch.full((1, 6), 0.1), torch.arange(6.0)[None] / 3
    assert entropy_correlation(constant, rising, ONES).isnan().all()
    assert entropy_correlation(rising, constant, ONES).isnan().all()
    one_token = torch.tensor([[1, 0, 0, 0, 0, 0]])
    assert entropy_correlation(rising, rising, one_token).isnan().all()
    assert entropy_correlation(rising, -rising, ONES).item() == pytest.approx(-1.0)
    both = of_rollouts(torch.cat([entropy_correlation(constant, rising, ONES), torch.tensor([0.5])]))
    assert (both.value, both.rollouts) == (0.5, 1), "a rollout without a value is left out and counted"


def test_fork_overlap_by_hand_and_for_less_than_five_tokens() -> None:
    student = torch.tensor([[0.0, 5.0, 1.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]])
    teacher = torch.tensor([[0.0, 5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0]])
    assert fork_overlap(student, teacher, torch.ones(1, 10)).item() == 0.5
    four = torch.tensor([[1] * 4 + [0] * 6])
    assert fork_overlap(student, teacher, four).isnan().all()
    five = torch.tensor([[1] * 5 + [0] * 5])
    assert fork_overlap(student, teacher, five).item() == 1.0
    assert fork_overlap(torch.zeros(1, 10), torch.zeros(1, 10), torch.ones(1, 10)).item() == 1.0, "ties: the earlier"


def test_an_empty_intersection_has_no_advantage() -> None:
    log = torch.tensor([[0.4, 0.3, 0.2]]).log()
    student = SupportTensors(torch.tensor([[1, 2, 3]]), log, log)
    teacher = SupportTensors(torch.tensor([[4, 5, 6]]), log, log)
    actual = measure_overlap(student, teacher)
    assert (actual.ratio.item(), actual.student_mass.item(), actual.teacher_mass.item()) == (0.0, 0.0, 0.0)
    assert actual.advantage.isnan().all()
    mean = of_rollouts(token_means(torch.tensor([[torch.nan, -0.25]]), torch.ones(1, 2)))
    assert mean.value == -0.25, "a position without an intersection is left out"
    assert math.isnan(of_rollouts(token_means(actual.advantage[:, None], torch.ones(1, 1))).value)


def split(reward: Tensor, correct: Tensor) -> dict[str, Ratio]:
    """Q3 of rollouts in which the student is sure of every token."""
    return q3_split(*quadrant_sums(reward, torch.zeros_like(reward), torch.ones_like(reward), 0.3), correct)


def test_quadrants_by_hand() -> None:
    reward = torch.tensor([[1.0, 1.0, -1.0, -1.0, 0.0]])
    entropy = torch.tensor([[0.299, 0.3, 0.299, 0.3, 0.1]])
    assert quadrant(reward, entropy).tolist() == [[1, 2, 3, 4, 0]]


@pytest.mark.parametrize("correct", ([True, True], [False, False]))
def test_dest_corr_is_undefined_without_both_kinds_of_rollouts(correct: list[bool]) -> None:
    actual = split(-torch.ones(2, 3), torch.tensor(correct))
    assert math.isnan(actual["dest_corr"].value) and actual["dest_corr"].rollouts == 0


def test_dest_corr_without_a_destructive_and_without_a_corrective_token() -> None:
    reward, correct = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([True, False])
    none = split(reward, correct)
    assert none["dest_corr"].value == 0.0 and none["destructive_mass"].value == 0.0
    assert math.isnan(none["destructive_reward"].value)
    assert math.isnan(split(-reward, correct)["dest_corr"].value)


TABLE_4 = {
    "0.5B, 7B": ((5.5, 0.186, 15.9, 0.186), 0.34),
    "0.5B, 14B": ((9.0, 0.147, 22.1, 0.166), 0.36),
    "0.5B, 7B-GRPO": ((4.4, 0.303, 11.2, 0.286), 0.41),
    "3B, 7B": ((12.4, 0.080, 6.4, 0.073), 2.13),
    "3B, 14B": ((21.4, 0.057, 9.0, 0.070), 1.95),
    "3B, 7B-GRPO": ((5.1, 0.203, 4.3, 0.159), 1.52),
}
"""Capacity, table 4: masses in %, mean |r|, Dest:Corr."""


@pytest.mark.parametrize("row", TABLE_4)
def test_capacitys_table_4_from_its_masses_and_rewards(row: str) -> None:
    columns, published = TABLE_4[row]
    # Masses are rounded to 0.05 and rewards to 0.0005: the ratio may be off by what that allows.
    slack = sum(half / value for half, value in zip((0.05, 0.0005, 0.05, 0.0005), columns, strict=True))
    assert dest_corr(*columns) == pytest.approx(published, rel=slack + 0.005 / published)


@pytest.mark.parametrize("row", TABLE_4)
def test_capacitys_table_4_from_tokens(row: str) -> None:
    (d_mass, d_reward, c_mass, c_reward), _ = TABLE_4[row]
    reward = torch.full((2, 1000), 1.0, dtype=torch.float64)
    reward[0, : round(20 * d_mass)], reward[1, : round(20 * c_mass)] = -d_reward, -c_reward
    actual = split(reward, torch.tensor([True, False]))
    assert actual["destructive_mass"].value == pytest.approx(d_mass / 100)
    assert actual["corrective_reward"].value == pytest.approx(c_reward)
    assert actual["dest_corr"].value == pytest.approx(dest_corr(d_mass, d_reward, c_mass, c_reward))


def test_forward_kl_is_undefined_without_a_fork() -> None:
    assert math.isnan(forward_kl_at_forks(ONES, 0.79 * ONES, ONES).value)
    assert forward_kl_at_forks(2 * ONES, 0.8 * ONES, ONES).value == 2.0


def test_masses_and_histogram() -> None:
    log_q = torch.tensor([[[0.5, 0.3, 0.1], [0.9, 0.05, 0.05]]]).log()
    actual = cumulative_mass(log_q, torch.tensor([[1, 1]]), (1, 2))
    assert {k: item.value for k, item in actual.items()} == pytest.approx({1: 0.7, 2: 0.875})
    counts = histogram(torch.tensor([[0.0, 0.05, 0.15, 7.0, -1e-7, 3.3]]), torch.tensor([[1, 1, 1, 1, 1, 0]]))
    assert (counts[0], counts[1], counts[BINS], sum(counts)) == (3, 1, 1, 5)


@given(limit=st.integers(1, 9000), count=st.integers(1, 12))
def test_depth_buckets_cover_every_position_once(limit: int, count: int) -> None:
    actual = depth_buckets(limit, count)
    assert [position for bucket in actual for position in bucket] == list(range(limit))
    assert max(map(len, actual)) - min(map(len, actual)) <= 1 and len(actual) == min(limit, count)


def test_reward_by_depth() -> None:
    values, mask = (
        torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    )
    actual = by_depth(values, mask, depth_buckets(4, 2))
    assert [item.value for item in actual.values()] == [3.5, 3.5]
    assert math.isnan(by_depth(values, mask * 0, depth_buckets(4, 2))[range(2, 4)].value)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_auroc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, bool]]) -> None:
    above, below = [[s for s, kind in pairs if kind is wanted] for wanted in (True, False)]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    scores, kinds = torch.tensor([float(s) for s, _ in pairs]), torch.tensor([kind for _, kind in pairs])
    by_hand = sum(wins) / len(wins) if wins else math.nan
    assert auroc(scores, kinds) == pytest.approx(by_hand, nan_ok=True)


def test_weighted_auroc_is_that_of_repeated_rollouts() -> None:
    scores, kinds = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([True, False, True, False])
    repeated = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    weights = torch.bincount(repeated).double()[None]
    assert weighted_auroc(scores, kinds, weights).item() == pytest.approx(auroc(scores[repeated], kinds[repeated]))


def test_ratios_of_prompts_and_their_bootstrap() -> None:
    ratio = Ratio(torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 1.0, 2.0]).double())
    grouped = ratio.grouped(torch.tensor([0, 1, 0]))
    assert grouped.numerator.tolist() == [4.0, 2.0] and grouped.denominator.tolist() == [3.0, 1.0]
    assert ratio.value == grouped.value == 1.5
    assert math.isnan(undefined(torch.ones(3, 2)).value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered, trials = 0, 300
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(100, generator=generator, dtype=torch.float64) + 2.0
        actual = estimate(of_rollouts(values), draws(100, 400, seed))
        covered += actual.low <= 2.0 <= actual.high
    assert 0.90 <= covered / trials <= 0.98


def test_the_bootstrap_draws_whole_units_and_repeats_itself() -> None:
    drawn = draws(7, 50, seed=1)
    assert (drawn.sum(-1) == 7).all() and torch.equal(drawn, draws(7, 50, seed=1))
    assert not torch.equal(drawn, draws(7, 50, seed=2))
    same = of_rollouts(torch.full((7,), 3.0))
    assert estimate(same, drawn) == estimate(same, drawn) and estimate(same, drawn).low == 3.0
    assert math.isnan(estimate(undefined(torch.ones(7)), drawn).low)
    rare = Ratio(torch.tensor([1.0] + [0.0] * 6).double(), torch.tensor([1.0] + [0.0] * 6).double())
    assert len(replicates(rare, drawn)) == int((drawn[:, 0] > 0).sum()), "a replicate without it has no value"


def test_tokens_that_are_undefined_leave_both_sums() -> None:
    actual = of_tokens(torch.tensor([[1.0, torch.nan, 3.0]]), torch.tensor([[1, 1, 0]]))
    assert (actual.numerator.item(), actual.denominator.item()) == (1.0, 1.0)
