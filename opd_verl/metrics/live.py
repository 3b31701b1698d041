"""The measurements of metrics/README.md 1 in training, once a step, on the rollouts that the student sampled."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from opd_verl.metrics.auroc import auroc
from opd_verl.metrics.depth import by_depth
from opd_verl.metrics.measurements import Observed, measurements
from opd_verl.metrics.overlap import Overlap

LOGGED_ELSEWHERE = ("accuracy", "truncated_share", "reverse_kl", "student_entropy", "teacher_entropy")
"""Measurements that verl's score metrics and `step_metrics` log already."""


def live_metrics(seen: Observed, buckets: Sequence[range], low_entropy: float) -> dict[str, float]:
    """`opd/<measurement>`, `opd/reward_auroc` and `opd/depth/<first>-<last>/reward`; undefined values are left out.

    Args:
        seen: the student's own rollouts, each with at least one token (`own_rollouts`).
        buckets: the ranges of positions.
        low_entropy: student entropy below which a token counts as committed, nats.
    """
    if not len(seen.mask):
        return {}
    # No taus: the share at the run's own tau is logged as `opd/gated_share`.
    measured = measurements(seen, low_entropy, taus=())
    values = {name: ratio.value for name, ratio in measured.items() if name not in LOGGED_ELSEWHERE}
    if seen.correct is not None:
        values["reward_auroc"] = auroc((seen.reward * seen.mask).sum(-1), seen.correct)
    for bucket, ratio in by_depth(seen.reward, seen.mask, list(buckets)).items():
        values[f"depth/{bucket.start}-{bucket.stop - 1}/reward"] = ratio.value
    return {f"opd/{name}": value for name, value in values.items() if value == value}  # NaN: undefined


def own_rollouts(seen: Observed, off_policy: Tensor | None) -> Observed:
    """The rollouts that the student sampled and that have a token; `off_policy` bool [B] marks all others."""
    rows = seen.mask.bool().any(-1)  # verl pads a batch with rollouts without tokens
    return select_rollouts(seen, rows if off_policy is None else rows & ~off_policy)


def select_rollouts(seen: Observed, rows: Tensor) -> Observed:
    """The rollouts marked in `rows`, bool [B]."""
    overlap = None if seen.overlap is None else Overlap(*(value[rows] for value in vars(seen.overlap).values()))
    fields = {name: value[rows] for name, value in vars(seen).items() if isinstance(value, Tensor)}
    return replace(seen, overlap=overlap, **fields)
