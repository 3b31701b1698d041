"""The verdict on a pair: what its measurements forecast for a run of OPD. Each rule rests on a paper's row. Pure.

The first rule that applies decides:

1. a teacher that is less accurate than the student: regression (Rethinking, reverse distillation)
2. Dest:Corr above 1: regression (Capacity table 4: every pair above 1 lost accuracy, every pair below 1 gained)
3. a teacher that is lost in the student's states, or shares too little of its probable tokens: regression without a
   cold start (Rethinking: thinking patterns must be compatible)
4. a teacher that is not more accurate, or (if it did not answer) entropy shapes that agree: no headroom
5. else a gain
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from opd_verl.metrics.estimate import Estimate
from opd_verl.probe.record import Continuation, Verdict
from opd_verl.probe.remedies import ALIGNED, COLD_START, MASK, MASKED_GAIN, MORE_PROMPTS, OTHER, further

GAIN, NO_HEADROOM, REGRESSION, CANNOT = "gain expected", "no headroom", "regression risk", "cannot distil"
RANK = (GAIN, NO_HEADROOM, REGRESSION, CANNOT)
THRESHOLDS = {"dest_corr": 1.0, "headroom": 0.0, "overlap_teacher_mass": 0.9}
"""Thresholds of the rules. In Rethinking's healthy runs shared ids hold 97-99% of the mass; the 90% is ours."""
NEGLIGIBLE = 1e-4
"""Q3 force, nats per token, below which Dest:Corr is a ratio of rounding errors; Capacity's weakest pair has 0.01."""
ALIGNED_RHO, ALIGNED_FORKS = 0.78, 0.82
"""Lowest values of the pairs in Capacity's table 3 that only lost accuracy (Qwen2.5-3B from 7B-GRPO); the pairs that
gained have rho <= 0.61."""


@dataclass(frozen=True)
class Evidence:
    """The numbers that the rules read."""

    values: Mapping[str, Estimate]
    above: Mapping[str, float]
    """Share of the bootstrap's replicates above the threshold, for each measurement in THRESHOLDS."""
    continuation: Sequence[Continuation] = ()

    def sure_below(self, name: str) -> float | None:
        """Share of the replicates at or below the threshold; None if there is no replicate."""
        return 1 - self.above[name] if name in self.above else None


def decide(seen: Evidence) -> Verdict:
    """The verdict of the first rule that applies. Its remedies come first, then the remedies for other risks."""
    first = next(verdict for rule in RULES if (verdict := rule(seen)) is not None)
    return replace(first, remedies=[*first.remedies, *further(seen.values)])


def worse_teacher(seen: Evidence) -> Verdict | None:
    """Rule 1: the teacher is less accurate; the headroom's whole interval is below 0."""
    headroom = seen.values.get("headroom")
    if headroom is None or not headroom.high < 0:
        return None
    row = "Rethinking, reverse distillation: a student regresses to its weaker teacher's level"
    rule = "the teacher is less accurate than the student on these prompts"
    return Verdict(REGRESSION, rule, points("headroom", headroom), row, seen.sure_below("headroom"), [OTHER])


def destructive(seen: Evidence) -> Verdict | None:
    """Rule 2: Dest:Corr is above 1."""
    ratio = seen.values["dest_corr"]
    if not ratio.value > THRESHOLDS["dest_corr"] or seen.values["q3_force"].value < NEGLIGIBLE:
        return None
    row = "Capacity table 4: the three pairs above 1 (1.52 to 2.13) lost on every benchmark"
    rule = "on confident tokens the teacher pulls harder against correct rollouts than against incorrect ones"
    remedies = [MASK, OTHER, MASKED_GAIN]
    return Verdict(REGRESSION, rule, f"Dest:Corr {ratio.text()}", row, seen.above.get("dest_corr"), remedies)


def mismatched(seen: Evidence) -> Verdict | None:
    """Rule 3: the teacher is lost in the student's states, or shares too little of its probable tokens."""
    lost = [continuation for continuation in seen.continuation if continuation.advantage.high < 0]
    headroom = seen.values.get("headroom")
    if lost and headroom is not None and headroom.low > 0:
        worst = min(lost, key=lambda continuation: continuation.advantage.value)
        number = points(f"continuation advantage after {worst.share:.0%} of a rollout", worst.advantage)
        row = "Rethinking: reward quality falls with the teacher's continuation advantage"
        rule = "the teacher is better from the start, but worse than the student once the student has led"
        return Verdict(REGRESSION, rule, number, row, worst.below, [COLD_START, ALIGNED])
    mass = seen.values.get("overlap_teacher_mass")
    if mass is None or not mass.value < THRESHOLDS["overlap_teacher_mass"]:
        return None
    row = "Rethinking: in successful runs shared ids hold 97-99% of the probability"
    number = f"teacher probability on shared top-k {mass.text()}"
    sure = seen.sure_below("overlap_teacher_mass")
    rule = "teacher and student have different likely tokens and thinking patterns"
    return Verdict(REGRESSION, rule, number, row, sure, [COLD_START, ALIGNED])


def no_headroom(seen: Evidence) -> Verdict | None:
    """Rule 4: the teacher is not clearly more accurate."""
    headroom = seen.values.get("headroom")
    if headroom is None:
        return aligned(seen)
    if headroom.low > 0:
        return None
    row = "Rethinking: a teacher without new capabilities gives no gain"
    rule = "the teacher is not clearly more accurate than the student on these prompts"
    sure, number = seen.sure_below("headroom"), points("headroom", headroom)
    return Verdict(NO_HEADROOM, rule, number, row, sure, [OTHER, MORE_PROMPTS])


def aligned(seen: Evidence) -> Verdict | None:
    """Rule 4 for a teacher that did not answer: the entropy shapes agree already."""
    rho, forks = seen.values.get("rho"), seen.values.get("fork_overlap")
    if rho is None or forks is None or not (rho.value >= ALIGNED_RHO and forks.value >= ALIGNED_FORKS):
        return None
    row = "Capacity table 3: all four pairs with rho >= 0.78 and ForkOverlap >= 82% lost"
    number = f"rho {rho.text()}, ForkOverlap {forks.text()}"
    return Verdict(NO_HEADROOM, "the entropy shapes agree already", number, row, None, [OTHER])


def gain(seen: Evidence) -> Verdict:
    """Rule 5: no other rule applies."""
    ratio, headroom = seen.values["dest_corr"], seen.values.get("headroom")
    number = ", ".join([f"Dest:Corr {ratio.text()}", *([points("headroom", headroom)] if headroom else [])])
    if math.isnan(ratio.value):
        return Verdict(GAIN, "nothing speaks against it, but Dest:Corr is undefined", number, "none", None)
    row = "Capacity table 4: the three pairs below 1 (0.34 to 0.41) gained"
    rule = "the teacher corrects more than it destroys" + (", and knows more" if headroom else "")
    shares = [seen.sure_below("dest_corr"), seen.above.get("headroom")]
    return Verdict(GAIN, rule, number, row, min(share for share in shares if share is not None))


RULES: tuple[Callable[[Evidence], Verdict | None], ...] = (worse_teacher, destructive, mismatched, no_headroom, gain)


def points(name: str, difference: Estimate) -> str:
    """A difference of accuracies in percentage points: `headroom +20.0 [+15.0, +25.0] points`."""
    return f"{name} {difference.text('+.1f', 100)} points"


def cannot(problems: list[str]) -> Verdict:
    """The verdict on a teacher that cannot score this student."""
    return Verdict(CANNOT, "the teacher cannot score the student's tokens", "; ".join(problems), "none", 1.0)


def ranking(verdicts: Mapping[str, tuple[Verdict, Mapping[str, Estimate]]]) -> list[str]:
    """Teachers, best first: by verdict, then by headroom, then by Dest:Corr; undefined numbers come last."""

    def key(name: str) -> tuple[int, float, float]:
        verdict, values = verdicts[name]
        headroom = values["headroom"].value if "headroom" in values else -math.inf
        ratio = values["dest_corr"].value if "dest_corr" in values else math.inf
        return RANK.index(verdict.verdict), -headroom, math.inf if math.isnan(ratio) else ratio

    return sorted(verdicts, key=key)
