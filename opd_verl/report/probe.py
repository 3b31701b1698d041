"""`probe.json` as records: what one student and one teacher are to each other, and what follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opd_verl.metrics.estimate import Estimate
from opd_verl.probe.record import VERSION, CompatibilityCheck, Continuation, Depth, Mass, Verdict


@dataclass(frozen=True)
class ProbedPair:
    """One student and one teacher."""

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
        """Both names."""
        return f"{self.student} → {self.teacher}"


def pairs_from_json(content: Mapping[str, Any]) -> list[ProbedPair]:
    """Raises KeyError or TypeError for a content of another form, ValueError for another version."""
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, this reads version {VERSION}")
    return [_pair(one) for one in content["pairs"]]


def _pair(content: Mapping[str, Any]) -> ProbedPair:
    found = content.get("verdict")
    histograms = content.get("histograms") or {}
    return ProbedPair(
        student=content["student"],
        teacher=content["teacher"],
        measurements={name: _estimate(one) for name, one in (content.get("measurements") or {}).items()},
        depth=[
            Depth(one["first"], one["last"], _estimate(one["reward"]), one["tokens"])
            for one in content.get("depth") or []
        ],
        masses=[Mass(one["k"], one["mass"], one["bytes"]) for one in content.get("mass") or []],
        continuation=[
            Continuation(one["share"], _estimate(one["teacher"]), _estimate(one["advantage"]), one["below"])
            for one in content.get("continuation") or []
        ],
        histograms={side: histograms[side] for side in ("student", "teacher") if histograms.get(side)},
        verdict=found and _verdict(found),
        compatibility=[
            CompatibilityCheck(one["what"], one["ok"], one["detail"]) for one in content.get("compatibility") or []
        ],
    )


def _verdict(content: Mapping[str, Any]) -> Verdict:
    texts = (content.get(name) or "" for name in ("rule", "number", "row"))
    return Verdict(content["verdict"], *texts, sure=content.get("sure"), remedies=list(content.get("remedies") or []))


def _estimate(content: Mapping[str, float | None]) -> Estimate:
    numbers = (content.get(name) for name in ("value", "low", "high"))
    return Estimate(*(math.nan if number is None else float(number) for number in numbers))
