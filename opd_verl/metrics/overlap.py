"""Agreement of the student's top-k and the teacher's (Rethinking eq. 6 and 7), position by position.

Shapes: k ids, any leading dimensions. Each top-k is a `SupportTensors` with the log-probs of both sides at its ids.
Nats, detached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail
from opd_verl.objectives.support import SupportTensors, members_of


@dataclass(frozen=True, eq=False)
class Overlap:
    """Values of every position [...]; `ratio` is float32, the others have the blocks' dtype."""

    ratio: Tensor
    """`|S_p ∩ S_q| / k`."""
    student_mass: Tensor
    """Student probability on the intersection; 97-99% in healthy runs."""
    teacher_mass: Tensor
    """Teacher probability on the intersection."""
    advantage: Tensor
    """Mean over the intersection of `pbar (log qbar - log pbar)`, both sides renormalised on the student's top-k, nats.
    It rises to 0 in healthy runs, and is NaN where the intersection is empty."""
    forward_kl: Tensor
    """EOPD's forward KL on the teacher's top-k: `sum qbar (log qbar - log p)`, nats."""


def measure_overlap(student: SupportTensors, teacher: SupportTensors) -> Overlap:
    """Compares two top-k blocks [..., k] of equal k."""
    shared, shared_teacher = members_of(student.ids, teacher.ids), members_of(teacher.ids, student.ids)
    log_p, log_q = (side.log_softmax(-1) for side in (student.log_p_old, student.log_q))
    advantage = (log_p.exp() * (log_q - log_p) * shared).sum(-1) / shared.sum(-1)
    return Overlap(
        ratio=shared.float().mean(-1),
        student_mass=(student.log_p_old.exp() * shared).sum(-1),
        teacher_mass=(teacher.log_q.exp() * shared_teacher).sum(-1),
        advantage=advantage.masked_fill(~shared.any(-1), torch.nan),
        forward_kl=support_divergence(teacher.log_p_old, teacher.log_q, Divergence.forward, Tail.renorm_teacher),
    )
