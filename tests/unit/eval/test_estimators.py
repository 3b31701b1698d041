"""pass@k, intervals and gap recovery against enumeration, closed forms, and known populations."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.eval.estimators import (
    gap_recovery,
    interval,
    mean_of_means,
    pass_at_k,
    powers_of_two,
    stratified_replicates,
)

CASES = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(CASES)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    samples = [True] * c + [False] * (n - c)
    naive = np.mean([any(subset) for subset in combinations(samples, k)])
    assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(naive, abs=1e-12)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_equals_the_closed_form(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1.0 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_known_values() -> None:
    counts = np.array([0, 1, 4, 8])
    assert pass_at_k(counts, 8, 1).tolist() == pytest.approx([0.0, 0.125, 0.5, 1.0])
    assert pass_at_k(counts, 8, 8).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert pass_at_k(np.array([0, 1, 50_000]), 100_000, 64)[1] == pytest.approx(64 / 100_000)
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"pass@{k}"):
            pass_at_k(counts, 8, k)


def test_pass_at_k_is_unbiased() -> None:
    """k samples that are right with probability p each hold a right one with probability 1 - (1 - p)^k."""
    p, n, k = 0.3, 8, 4
    mass = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert mass @ pass_at_k(np.arange(n + 1), n, k) == pytest.approx(1 - (1 - p) ** k)


def test_powers_of_two_end_with_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_the_bootstrap_has_the_mean_and_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).random(200)
    drawn = stratified_replicates([values], 4000, seed=1)
    assert drawn.mean() == pytest.approx(values.mean(), abs=2e-3)
    assert drawn.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.05)


def test_an_interval_is_repeated_by_its_seed_and_holds_its_value() -> None:
    values = np.random.default_rng(0).random(50)
    item = interval([values], 500, seed=3)
    assert item == interval([values.copy()], 500, seed=3) != interval([values], 500, seed=4)
    assert item.low < item.value == values.mean() < item.high
    same = interval([np.full(5, 0.25)], 500, seed=0)
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for seed in range(300):
        skill = rng.beta(0.6, 0.9, size=80)
        actual = interval([rng.binomial(8, skill) / 8], 400, seed)
        hits += actual.low <= 0.4 <= actual.high
    assert 0.91 <= hits / 300 <= 0.98


def test_benchmarks_count_alike_whatever_their_size() -> None:
    strata = [np.zeros(2), np.ones(100)]
    assert mean_of_means(strata) == 0.5
    assert interval(strata, 100, 0).value == 0.5
    small = [np.random.default_rng(0).random(10) for _ in range(2)]
    assert stratified_replicates(small, 2000, 0).std() == pytest.approx(
        np.sqrt(sum(item.var() / 10 for item in small)) / 2, rel=0.1
    )


def test_the_same_problems_are_drawn_for_every_model() -> None:
    a = np.random.default_rng(0).random(30)
    assert np.allclose(stratified_replicates([a + 0.5], 100, 7) - stratified_replicates([a], 100, 7), 0.5)


def test_gap_recovery_by_hand() -> None:
    assert gap_recovery(0.2, 0.6, 1.0) == pytest.approx(0.5)
    assert gap_recovery(0.2, 0.1, 0.7) == pytest.approx(-0.2)
    assert gap_recovery(0.5, 0.6, 0.5) is None
    assert gap_recovery(0.5, 0.6, 0.4) is None
