"""The rule-based reward: last balanced box, exact match before math-verify, never an exception."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_verl.rewards import compute_score, last_boxed

HOSTILE = st.text(alphabet="\\{}$^_ boxed()frac/0123456789.,+-=x\n%&\u221e\x00", max_size=60)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7} and an open \boxed{\frac{1}{2}", "7"),
        (r"\boxed{}", ""),
        ("42", None),
        (r"\boxed{42", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{864}", "864", 1.0),
        (r"\boxed{ 864 }", "864", 1.0),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{2x + 1}", "1+2x", 1.0),
        (r"\boxed{854}", "864", 0.0),
        (r"\boxed{864} no, \boxed{865}", "864", 0.0),
        ("864", "864", 0.0),
        (r"\boxed{}", "864", 0.0),
        ("", "864", 0.0),
    ],
)
def test_score(text: str, truth: str, score: float) -> None:
    result = compute_score("any", text, truth)
    assert (result["score"], result["acc"]) == (score, bool(score))


def test_verls_calling_convention() -> None:
    result = compute_score(
        data_source="any",
        solution_str=r"\boxed{3}",
        ground_truth="3",
        extra_info={"index": 0},
        reward_router_address=None,
    )
    assert result == {"score": 1.0, "acc": True, "pred": "3"}


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_integers_score_by_value(answer: int, truth: int) -> None:
    assert compute_score("any", f"\\boxed{{{answer}}}", str(truth))["score"] == float(answer == truth)


@given(st.text(alphabet="ab1{}", max_size=20).filter(lambda s: s.count("{") == s.count("}") == 0), HOSTILE)
def test_a_closing_box_is_always_the_last(content: str, before: str) -> None:
    assert last_boxed(f"{before.replace('{', '')} \\boxed{{{content}}}") == content


@settings(deadline=None, max_examples=100)
@given(HOSTILE, HOSTILE)
def test_never_raises_and_is_zero_or_one(text: str, truth: str) -> None:
    for response in (text, f"\\boxed{{{text}}}"):
        assert compute_score("any", response, truth)["score"] in (0.0, 1.0)


def test_an_answer_that_never_ends_is_wrong_and_the_next_is_judged() -> None:
    assert compute_score("any", r"\boxed{9^{9^{9^9}}}", r"\frac{1}{2}")["score"] == 0.0
    assert compute_score("any", r"\boxed{0.5}", r"\frac{1}{2}")["score"] == 1.0


def test_threads_get_the_same_verdicts() -> None:
    answers = [r"\boxed{0.5}", r"\boxed{0.25}", r"\boxed{2/4}"] * 4
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda text: compute_score("any", text, r"\frac{1}{2}")["score"], answers))
    assert scores == [1.0, 0.0, 1.0] * 4
