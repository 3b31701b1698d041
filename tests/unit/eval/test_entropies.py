"""Token entropies: the summary by hand, and the choice of responses."""

import numpy as np
import pytest

from opd_verl.eval.entropies import chosen, summarise
from opd_verl.metrics.thresholds import BINS


def test_the_summary_by_hand() -> None:
    actual = summarise([np.array([0.0, 0.05, 1.0], np.float32), np.array([-1e-7, 7.5], np.float32)])
    assert (actual.responses, actual.tokens) == (2, 5)
    assert actual.mean == pytest.approx(8.55 / 5)
    assert actual.high_share == pytest.approx(2 / 5)
    assert len(actual.counts) == BINS + 1 and sum(actual.counts) == 5
    assert (actual.counts[0], actual.counts[10], actual.counts[BINS]) == (3, 1, 1)


def test_the_choice_is_seeded_without_repetition_and_in_order() -> None:
    assert chosen(3, 2, None, 0) == chosen(3, 2, 6, 0) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    picked = chosen(50, 4, 30, seed=1)
    assert picked == sorted(set(picked)) == chosen(50, 4, 30, seed=1) != chosen(50, 4, 30, seed=2)
    assert len(picked) == 30 and all(0 <= problem < 50 and 0 <= sample < 4 for problem, sample in picked)
