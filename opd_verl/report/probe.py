"""`probe.json` as records: measurements and verdict of each pair of a student and a teacher."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opd_verl.metrics.estimate import Estimate
from opd_verl.probe.record import VERSION, CompatibilityCheck, Continuation, Depth, Mass, Verdict


@dataclass(frozen=True)
class ProbedPair:
    """The probe's results for one student and one teacher."""

    student: str
    teacher: str
    measurements: dict[str, Estimate]
    depth: list[Depth]
    masses: list[Mass]
    continuation: list[Continuation]
    histograms: dict[str, list[int]]
    """"student" and "teacher": tokens per bin of entropy."""
    verdict: Verdict | None
    compatibility: list[CompatibilityCheck]

    @property
    def name(self) -> str:
        """Names of student and teacher."""
        return f"{self.student} → {self.teacher}"


def pairs_from_json(content: Mapping[str, Any]) -> list[ProbedPair]:
    """The pairs of a probe.json. Raises KeyError or TypeError for another form, ValueError for another version."""
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}; the report reads version {VERSION}")
    return [_pair(pair) for pair in content["pairs"]]


def _pair(content: Mapping[str, Any]) -> ProbedPair:
    verdict = content.get("verdict")
    histograms = content.get("histograms") or {}
    return ProbedPair(
        student=content["student"],
        teacher=content["teacher"],
        measurements={name: _estimate(value) for name, value in (content.get("measurements") or {}).items()},
        depth=[
            Depth(depth["first"], depth["last"], _estimate(depth["reward"]), depth["tokens"])
            for depth in content.get("depth") or []
        ],
        masses=[Mass(mass["k"], mass["mass"], mass["bytes"]) for mass in content.get("mass") or []],
        continuation=[
            Continuation(point["share"], _estimate(point["teacher"]), _estimate(point["advantage"]), point["below"])
            for point in content.get("continuation") or []
        ],
        histograms={side: histograms[side] for side in ("student", "teacher") if histograms.get(side)},
        verdict=verdict
        and Verdict(
            verdict["verdict"],
            *(verdict.get(name) or "" for name in ("rule", "number", "row")),
            sure=verdict.get("sure"),
            remedies=list(verdict.get("remedies") or []),
        ),
        compatibility=[
            CompatibilityCheck(check["what"], check["ok"], check["detail"])
            for check in content.get("compatibility") or []
        ],
    )


def _estimate(content: Mapping[str, float | None]) -> Estimate:
    numbers = (content.get(name) for name in ("value", "low", "high"))
    return Estimate(*(math.nan if number is None else float(number) for number in numbers))
