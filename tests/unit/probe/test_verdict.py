"""The rules of the verdict, one by one and in their order; the ranking of teachers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.metrics.estimate import Estimate
from opd_verl.probe.record import Continuation, Verdict
from opd_verl.probe.remedies import COLD_START, MASK
from opd_verl.probe.verdict import (
    CANNOT,
    GAIN,
    NO_HEADROOM,
    REGRESSION,
    Evidence,
    cannot,
    decide,
    points,
    ranking,
)

NAN = math.nan


def near(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half)


HEALTHY = {
    "dest_corr": near(0.4),
    "headroom": near(0.2),
    "q3_force": near(0.05, 0.01),
    "overlap_teacher_mass": near(0.98, 0.01),
    "overlap_ratio": near(0.8),
    "rho": near(0.58),
    "fork_overlap": near(0.72),
    "truncated_share": near(0.0, 0.0),
    "response_length": near(900.0, 10.0),
}
ABOVE = {"dest_corr": 0.02, "headroom": 0.99, "overlap_teacher_mass": 1.0}


def verdict(
    above: dict[str, float] | None = None, going_on: float | None = None, **changes: Estimate | None
) -> Verdict:
    values = {name: value for name, value in (HEALTHY | changes).items() if value is not None}
    continuation = [] if going_on is None else [Continuation(0.5, near(0.3), near(going_on), 0.97)]
    return decide(Evidence(values, ABOVE | (above or {}), continuation))


def test_a_healthy_pair_gains_and_is_as_sure_as_its_weaker_half() -> None:
    ruling = verdict()
    assert (ruling.verdict, ruling.sure, ruling.remedies) == (GAIN, pytest.approx(0.98), [])
    assert "Dest:Corr 0.40 [0.35, 0.45]" in ruling.number and "headroom +20.0 [+15.0, +25.0] points" in ruling.number
    assert "0.34 to 0.41" in ruling.row


def test_destructive_force_above_one_is_a_risk_with_the_mask_as_remedy() -> None:
    ruling = verdict({"dest_corr": 0.93}, dest_corr=Estimate(1.3, 0.9, 1.8))
    assert (ruling.verdict, ruling.sure) == (REGRESSION, 0.93) and ruling.remedies[0] == MASK
    assert "table 4" in ruling.row


def test_a_ratio_of_rounding_errors_is_no_risk() -> None:
    assert verdict(dest_corr=near(3.0), q3_force=near(1e-6, 1e-7)).verdict == GAIN


def test_a_worse_teacher_decides_before_everything_else() -> None:
    ruling = verdict({"headroom": 0.0}, headroom=near(-0.3), dest_corr=near(2.0))
    assert (ruling.verdict, ruling.sure) == (REGRESSION, 1.0) and "less accurate" in ruling.rule
    unsure = verdict({"headroom": 0.2}, headroom=Estimate(-0.05, -0.12, 0.02))
    assert (unsure.verdict, unsure.sure) == (NO_HEADROOM, 0.8), "the interval holds 0: no regression by this rule"


def test_a_teacher_that_is_lost_in_the_students_states() -> None:
    ruling = verdict(going_on=-0.2)
    assert (ruling.verdict, ruling.sure, ruling.remedies[0]) == (REGRESSION, 0.97, COLD_START)
    assert "after 50% of a rollout -20.0 [-25.0, -15.0] points" in ruling.number
    assert verdict(going_on=-0.04).verdict == GAIN, "its interval holds 0"
    assert verdict(going_on=0.1).verdict == GAIN


def test_other_likely_tokens_are_another_thinking_pattern() -> None:
    ruling = verdict({"overlap_teacher_mass": 0.1}, overlap_teacher_mass=near(0.85))
    assert (ruling.verdict, ruling.sure) == (REGRESSION, 0.9) and "97-99%" in ruling.row


def test_no_headroom_from_accuracies_or_else_from_the_shapes() -> None:
    level = verdict({"headroom": 0.6}, headroom=Estimate(0.01, -0.05, 0.07))
    assert (level.verdict, level.sure) == (NO_HEADROOM, 0.4)
    shapes = verdict(headroom=None, rho=near(0.9), fork_overlap=near(0.85))
    assert (shapes.verdict, shapes.sure) == (NO_HEADROOM, None) and "table 3" in shapes.row
    assert verdict(headroom=None, rho=near(0.9), fork_overlap=near(0.8)).verdict == GAIN
    assert verdict(headroom=None, rho=Estimate(NAN, NAN, NAN), fork_overlap=near(0.85)).verdict == GAIN
    assert verdict(rho=near(0.9), fork_overlap=near(0.85)).verdict == GAIN, "accuracies tell more than shapes"


def test_an_undefined_dest_corr_is_said() -> None:
    ruling = verdict(dest_corr=Estimate(NAN, NAN, NAN))
    assert (ruling.verdict, ruling.sure, ruling.row) == (GAIN, None, "none") and "undefined" in ruling.rule


def test_more_remedies_for_low_overlap_cut_and_long_rollouts() -> None:
    assert "overlap ratio 60%" in verdict(overlap_ratio=near(0.6)).remedies[0]
    assert "30% of the rollouts are cut" in verdict(truncated_share=near(0.3)).remedies[0]
    assert "8000 tokens" in verdict(response_length=near(8000.0)).remedies[0]


@given(st.lists(st.floats(0.0, 3.0), min_size=2, max_size=2), st.floats(-0.5, 0.5))
def test_more_destructive_force_never_makes_a_better_verdict(ratios: list[float], headroom: float) -> None:
    order = [GAIN, NO_HEADROOM, REGRESSION]
    actual = [order.index(verdict(dest_corr=near(ratio), headroom=near(headroom)).verdict) for ratio in sorted(ratios)]
    assert actual == sorted(actual)


def test_teachers_are_ranked_by_verdict_then_headroom_then_force() -> None:
    def entry(headroom: float, ratio: float) -> tuple[Verdict, dict[str, Estimate]]:
        changes = {"headroom": near(headroom), "dest_corr": near(ratio)}
        return verdict(**changes), HEALTHY | changes

    teachers = {
        "broken": (cannot(["another tokenizer"]), {}),
        "risky": entry(0.4, 1.5),
        "good": entry(0.3, 0.4),
        "gentle": entry(0.3, 0.2),
        "level": entry(0.0, 0.2),
        "best": entry(0.35, 0.5),
    }
    assert ranking(teachers) == ["best", "gentle", "good", "level", "risky", "broken"]
    assert teachers["broken"][0].verdict == CANNOT and "another tokenizer" in teachers["broken"][0].number


def test_numbers_in_words() -> None:
    assert Estimate(1.0, NAN, NAN).text() == "1.00"
    assert points("headroom", Estimate(-0.051, -0.2, 0.1)) == "headroom -5.1 [-20.0, +10.0] points"
