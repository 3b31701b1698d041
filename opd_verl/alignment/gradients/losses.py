"""Any exact divergence of `opd_verl.objectives` as an objective that is compared with the ideal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objectives.names import Divergence, Support, Tail


@dataclass(frozen=True)
class LossSettings:
    """A further objective with the keys of `opd.objective`: support x divergence x tail."""

    support: Support = Support.student_topk
    k: int = 16
    """Ids of a top-k. Only ids above `targets.threshold` on some side are known here, so a top-k may have fewer."""
    divergence: Divergence = Divergence.reverse
    beta: float = 0.5
    tail: Tail = Tail.renorm


def chosen(loss: LossSettings, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Which of the known ids are in the support, bool [L, K]; -inf in `log_p` is padding."""
    known = log_p.isfinite()
    student, teacher = (_top(side, loss.k) & known for side in (log_p, log_q))
    return {
        Support.student_topk: student,
        Support.teacher_topk: teacher,
        Support.union: student | teacher,
        Support.intersection: student & teacher,
        Support.symmetric_difference: student ^ teacher,
        Support.full: known,
    }[loss.support]


def _top(side: Tensor, k: int) -> Tensor:
    ids = side.topk(min(k, side.shape[-1]), dim=-1).indices
    return torch.zeros_like(side, dtype=torch.bool).scatter_(-1, ids, True)
