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
    """The student behind one context; extremely hard questions are left out."""

    context: str
    bins: dict[str, BinAccuracy]
    questions: int
    accuracy: Estimate
    difference: Estimate | None
    """Accuracy less the baseline's, question by question; None for the baseline itself."""


def screen(baseline: Array, rates: Mapping[str, Array], resamples: int, seed: int) -> list[Screened]:
    """The baseline, then every context; all rates [Q] are of the same questions, none of which has the baseline 0.

    resamples: bootstrap replicates over questions, the same ones for every context.
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
        f"{excluded} questions that it never answers are left out. In square "
        "brackets: 95% bootstrap intervals over questions. The baseline also chooses the bins: a part of what hard "
        "questions gain, and easy ones lose, is return to the mean."
    )
    return f"# What contexts do for the student\n\n{markdown_table(heads, lines)}\n\n{caption}\n"
