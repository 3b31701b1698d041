"""Whether contexts help the student answer, overall and by difficulty (Unmasking, Tables 8 and 9). Pure numpy.

Shapes: Q questions. A rate is the share of a question's responses that are correct.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from opd_verl.alignment.tree.difficulty import BINS, SOLVABLE, difficulty
from opd_verl.eval.estimators import Array, interval
from opd_verl.metrics.estimate import Estimate, percent
from opd_verl.utils.markdown import markdown_table

BASELINE = "baseline"


@dataclass(frozen=True)
class BinAccuracy:
    """The questions of one difficulty."""

    accuracy: float
    """NaN without questions."""
    questions: int


@dataclass(frozen=True)
class Screened:
    """The student with one context; extremely hard questions are left out."""

    context: str
    bins: dict[str, BinAccuracy]
    questions: int
    accuracy: Estimate
    difference: Estimate | None
    """Accuracy less the baseline's accuracy, question by question; None for the baseline itself."""


def screen(baseline: Array, rates: Mapping[str, Array], resamples: int, seed: int) -> list[Screened]:
    """The baseline, then every context. All rates [Q] belong to the same questions, and no baseline rate is 0.

    resamples: bootstrap replicates over questions; every context uses the same replicates.
    """
    assert (baseline > 0.0).all(), "a question that is never answered has no place in the table"
    kinds = difficulty(baseline)
    return [
        Screened(
            name,
            {kind: BinAccuracy(_mean(rate[kinds == kind]), int((kinds == kind).sum())) for kind in reversed(SOLVABLE)},
            len(rate),
            _estimate(rate, resamples, seed),
            None if name == BASELINE else _estimate(rate - baseline, resamples, seed),
        )
        for name, rate in {BASELINE: baseline, **rates}.items()
    ]


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _estimate(values: Array, resamples: int, seed: int) -> Estimate:
    return interval([values], resamples, seed) if len(values) else Estimate(*[float("nan")] * 3)


def to_markdown(rows: list[Screened], excluded: int, responses: int) -> str:
    """screening.md."""
    heads = ["context", *(f"{kind} %" for kind in rows[0].bins), "all %", "questions", "difference, points"]
    lines = [
        [
            row.context,
            *(
                f"{100 * level.accuracy:.1f} ({level.questions})" if level.questions else ""
                for level in row.bins.values()
            ),
            percent(row.accuracy),
            str(row.questions),
            "" if row.difference is None else percent(row.difference),
        ]
        for row in rows
    ]
    ranges = ", ".join(f"{kind} {BINS[kind]}" for kind in rows[0].bins)
    caption = (
        f"{responses} responses per question and context. Baseline's pass rate p: {ranges} (questions in brackets). "
        f"{excluded} questions that the baseline never answers are left out. In square "
        "brackets: 95% bootstrap intervals over questions. The baseline also chooses the bins: part of the gain of "
        "hard questions, and of the loss of easy questions, is regression to the mean."
    )
    return f"# Effect of each context on the student\n\n{markdown_table(heads, lines)}\n\n{caption}\n"
