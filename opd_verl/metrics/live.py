"""The measurements of metrics/README.md 1 in training, once a step, on the rollouts that the student sampled."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from opd_verl.metrics.auroc import auroc
from opd_verl.metrics.depth import by_depth
from opd_verl.metrics.measurements import Observed, measurements
from opd_verl.metrics.overlap import Overlap

LOGGED_BEFORE = ("accuracy", "truncated_share", "reverse_kl", "student_entropy", "teacher_entropy")
"""verl's score metrics and `step_metrics` have them; a gate's share is logged for the run's own tau."""


def live_metrics(seen: Observed, buckets: Sequence[range], low_entropy: float) -> dict[str, float]:
    """`opd/<measurement>`, `opd/reward_auroc` and `opd/depth/<first>-<last>/reward`; what is undefined is left out.

    Args:
        seen: the student's own rollouts with at least one token each (`own_rollouts`).
        buckets: positions that belong together.
        low_entropy: student entropy below which a token counts as committed, nats.
    """
    if not len(seen.mask):
        return {}
    values = {name: ratio.value for name, ratio in measurements(seen, low_entropy, taus=()).items()}
    found = {name: values[name] for name in values if name not in LOGGED_BEFORE}
    if seen.correct is not None:
        found["reward_auroc"] = auroc((seen.reward * seen.mask).sum(-1), seen.correct)
    for bucket, ratio in by_depth(seen.reward, seen.mask, list(buckets)).items():
        found[f"depth/{bucket.start}-{bucket.stop - 1}/reward"] = ratio.value
    return {f"opd/{name}": value for name, value in found.items() if value == value}


def own_rollouts(seen: Observed, off_policy: Tensor | None) -> Observed:
    """Those that the student sampled (`off_policy` bool [B] marks the others) and that have a token."""
    rows = seen.mask.bool().any(-1)
    return chosen(seen, rows if off_policy is None else rows & ~off_policy)


def chosen(seen: Observed, rows: Tensor) -> Observed:
    """The rollouts marked in `rows` bool [B]."""
    overlap = None if seen.overlap is None else Overlap(*(value[rows] for value in vars(seen.overlap).values()))
    fields = {name: value[rows] for name, value in vars(seen).items() if isinstance(value, Tensor)}
    return replace(seen, overlap=overlap, **fields)
