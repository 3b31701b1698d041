"""One pair's results, as they are written to probe.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opd_verl.metrics.thresholds import BIN_WIDTH
from opd_verl.probe.measure import PairMeasurements
from opd_verl.probe.record import CompatibilityCheck, Continuation, Mass, Verdict
from opd_verl.utils.files import finite


@dataclass(frozen=True)
class PairResult:
    """A student and a teacher."""

    student: str
    teacher: str
    compatibility: Sequence[CompatibilityCheck]
    verdict: Verdict
    measured: PairMeasurements | None = None
    """None: the teacher cannot score this student."""
    masses: Sequence[Mass] = ()
    continuation: Sequence[Continuation] = ()


def to_json(pair: PairResult) -> dict[str, Any]:
    """Plain values; what is undefined is null."""
    found: dict[str, Any] = {
        "student": pair.student,
        "teacher": pair.teacher,
        "verdict": asdict(pair.verdict),
        "compatibility": [asdict(one) for one in pair.compatibility],
    }
    if pair.measured is not None:
        found |= measured_json(pair.measured)
        found["mass"] = [asdict(one) for one in pair.masses]
        found["continuation"] = [asdict(one) for one in pair.continuation]
    return finite(found)


def measured_json(measured: PairMeasurements) -> dict[str, Any]:
    """Measurements, depth and histograms."""
    return {
        "measurements": {
            name: asdict(one.estimate) | {"rollouts": one.rollouts} for name, one in measured.values.items()
        },
        "depth": [asdict(one) for one in measured.depth],
        "histograms": {
            "bin_width": BIN_WIDTH,
            "student": measured.student_histogram,
            "teacher": measured.teacher_histogram,
        },
    }
