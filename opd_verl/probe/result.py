"""One pair's results, and their form in probe.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from opd_verl.metrics.thresholds import BIN_WIDTH
from opd_verl.probe.measure import PairMeasurements
from opd_verl.probe.record import CompatibilityCheck, Continuation, Mass, Verdict
from opd_verl.utils.files import finite


@dataclass(frozen=True)
class PairResult:
    """All results of a student and a teacher."""

    student: str
    teacher: str
    compatibility: Sequence[CompatibilityCheck]
    verdict: Verdict
    measured: PairMeasurements | None = None
    """None if the teacher cannot score this student."""
    masses: Sequence[Mass] = ()
    continuation: Sequence[Continuation] = ()


def to_json(pair: PairResult) -> dict[str, object]:
    """The pair as plain values; an undefined number is null."""
    content: dict[str, object] = {
        "student": pair.student,
        "teacher": pair.teacher,
        "verdict": asdict(pair.verdict),
        "compatibility": [asdict(check) for check in pair.compatibility],
    }
    if pair.measured is not None:
        content |= measured_json(pair.measured)
        content["mass"] = [asdict(mass) for mass in pair.masses]
        content["continuation"] = [asdict(continuation) for continuation in pair.continuation]
    return finite(content)


def measured_json(measured: PairMeasurements) -> dict[str, object]:
    """Measurements, depth and histograms."""
    return {
        "measurements": {
            name: asdict(value.estimate) | {"rollouts": value.rollouts} for name, value in measured.values.items()
        },
        "depth": [asdict(depth) for depth in measured.depth],
        "histograms": {
            "bin_width": BIN_WIDTH,
            "student": measured.student_histogram,
            "teacher": measured.teacher_histogram,
        },
    }
