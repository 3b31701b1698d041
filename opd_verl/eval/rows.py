"""Makes the rows of the table from judged rollouts. Pure: pyarrow and numpy.

Shapes: N problems, n samples of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from opd_verl.eval.answers import answer_entropy, distinct_share, majority
from opd_verl.eval.entropies import EntropySummary
from opd_verl.eval.estimators import Array, gap_recovery, interval, mean_of_means, pass_at_k
from opd_verl.metrics.estimate import Estimate
from opd_verl.sampling.judging import CORRECT

AVERAGE = "average"
"""Benchmark name of a row that is the mean over all benchmarks."""


@dataclass(frozen=True)
class EvalRow:
    """The numbers of one model on one benchmark. Shares are 0 to 1; means are over problems and their samples."""

    model: str
    benchmark: str
    problems: int
    n: int
    """Samples per problem."""
    accuracy: Estimate
    """avg@n."""
    pass_at: dict[int, Estimate]
    """Unbiased pass@k for each k."""
    majority: Estimate
    """maj@n; answers are compared as texts."""
    length: float
    """Mean response length, tokens, the end-of-sequence token included."""
    truncated: float
    """Share of responses cut at max_tokens."""
    unanswered: float
    """Share of responses in which no answer was found."""
    distinct: float
    """Mean number of different answers over n."""
    answer_entropy: float
    """Mean entropy of the empirical distribution of a problem's answers, nats."""
    entropy: EntropySummary | None = None
    """Token entropies; None if the config does not ask for them, and in averages."""
    gap_recovery: float | None = None
    """(accuracy - before) / (teacher - before); None for `before` and `teacher` themselves, and without a gap."""


Values = dict[str, Array]
"""Metric's name: its value for each problem, [N]."""


def problem_values(rollouts: pa.Table, ks: Sequence[int]) -> Values:
    """All metrics of each problem, from the columns of a rollouts file."""
    answers = rollouts["answers"].to_pylist()
    correct_Nn = np.array(rollouts["scores"].to_pylist(), np.float64) > CORRECT
    length_Nn = np.array(rollouts["response_tokens"].to_pylist(), np.float64)
    finished_Nn = np.array(rollouts["finished"].to_pylist(), bool)
    counts, n = correct_Nn.sum(axis=1), correct_Nn.shape[1]
    pairs = list(zip(answers, correct_Nn, strict=True))
    return {f"pass@{k}": pass_at_k(counts, n, k) for k in ks} | {
        "accuracy": correct_Nn.mean(axis=1),
        "majority": np.array([majority(texts, right) for texts, right in pairs]),
        "length": length_Nn.mean(axis=1),
        "truncated": 1.0 - finished_Nn.mean(axis=1),
        "unanswered": np.array([np.mean([not text.strip() for text in texts]) for texts in answers]),
        "distinct": np.array([distinct_share(texts) for texts in answers]),
        "answer_entropy": np.array([answer_entropy(texts) for texts in answers]),
    }


def make_row(
    model: str, benchmark: str, n: int, ks: Sequence[int], strata: Sequence[Values], resamples: int, seed: int
) -> EvalRow:
    """Makes one row; several strata (benchmarks) count equally."""

    def with_interval(name: str) -> Estimate:
        return interval([values[name] for values in strata], resamples, seed)

    def mean(name: str) -> float:
        return mean_of_means([values[name] for values in strata])

    return EvalRow(
        model=model,
        benchmark=benchmark,
        problems=sum(len(values["accuracy"]) for values in strata),
        n=n,
        accuracy=with_interval("accuracy"),
        pass_at={k: with_interval(f"pass@{k}") for k in ks},
        majority=with_interval("majority"),
        length=mean("length"),
        truncated=mean("truncated"),
        unanswered=mean("unanswered"),
        distinct=mean("distinct"),
        answer_entropy=mean("answer_entropy"),
    )


def with_gap_recovery(rows: Sequence[EvalRow], before: str | None, teacher: str | None) -> list[EvalRow]:
    """Adds the gap recovery rate to the rows of all models except `before` and `teacher`."""
    accuracy = {(row.model, row.benchmark): row.accuracy.value for row in rows}
    if before is None or teacher is None:
        return list(rows)
    return [
        row
        if row.model in (before, teacher)
        else replace(
            row,
            gap_recovery=gap_recovery(
                accuracy[before, row.benchmark], row.accuracy.value, accuracy[teacher, row.benchmark]
            ),
        )
        for row in rows
    ]
