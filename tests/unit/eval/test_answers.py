"""Majority votes and answer diversity, by hand and by their laws."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.eval.answers import answer_entropy, distinct_share, majority

ANSWERS = st.lists(st.sampled_from(["", "1", "2", " 3 ", "3"]), min_size=1, max_size=8)


def of(answers: list[str], right: str) -> float:
    return majority(answers, [answer.strip() == right for answer in answers])


def test_majority_by_hand() -> None:
    assert of(["1", "2", "2"], "2") == 1.0
    assert of(["1", "2", "2"], "1") == 0.0
    assert of(["1", "2"], "2") == 0.5, "a tie is settled by lot"
    assert of(["1", "1", "2", "2", "3", "3"], "3") == pytest.approx(1 / 3)
    assert of(["", "", "", "4"], "4") == 1.0, "no answer is no vote"
    assert of(["", ""], "4") == 0.0
    assert of(["4 ", " 4", "5"], "4") == 1.0, "white space tells no answers apart"
    assert majority(["4", "4"], [True, False]) == 0.5, "a judge that reads more than the answer"


def test_diversity_by_hand() -> None:
    assert distinct_share(["1", "2", "1 ", ""]) == 0.5
    assert distinct_share(["", ""]) == 0.0
    assert answer_entropy(["1", "2", "1", "2"]) == pytest.approx(log(2))
    assert answer_entropy(["1", "1"]) == answer_entropy(["", ""]) == 0.0
    assert answer_entropy(["1", "2", "3"]) == pytest.approx(log(3))


@given(ANSWERS, st.randoms())
def test_order_does_not_matter_and_bounds_hold(answers: list[str], random: object) -> None:
    shuffled = answers.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of(answers, "3") == pytest.approx(of(shuffled, "3"))
    assert 0.0 <= answer_entropy(answers) <= log(len(answers)) + 1e-12
    assert answer_entropy(answers) == pytest.approx(answer_entropy(shuffled))
    assert 0.0 <= distinct_share(answers) <= 1.0


@given(st.lists(st.sampled_from(["1", "2"]), min_size=1, max_size=9), st.sampled_from(["1", "2"]))
def test_of_two_answers_the_majority_is_the_one_above_half(answers: list[str], right: str) -> None:
    share = answers.count(right) / len(answers)
    assert of(answers, right) == (0.5 if share == 0.5 else float(share > 0.5))
