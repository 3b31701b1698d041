"""What was read, as padded tensors for the measurements.

Shapes: B rollouts, R response tokens, K ids.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from opd_verl.metrics.measurements import Observed
from opd_verl.metrics.overlap import measure_overlap
from opd_verl.objectives.support import SupportTensors
from opd_verl.probe.readings import Arrays, PairReadings
from opd_verl.probe.rollouts import Rollout


@dataclass(frozen=True)
class ObservedPair:
    """A student and a teacher by name: what was read, and the same for the measurements."""

    student: str
    teacher: str
    pair: PairReadings
    observed: Observed


def padded(rows: Arrays) -> Tensor:
    """[B, R] or [B, R, K], 0 behind each row."""
    return pad_sequence([torch.from_numpy(np.array(row)) for row in rows], batch_first=True)


def observe(pair: PairReadings, rollouts: list[Rollout]) -> Observed:
    """The pair on its rollouts; a token without finite values of both models is masked."""
    k, student, teacher = pair.k, pair.student, pair.teacher
    own = SupportTensors(
        ids=padded(student.column("topk_ids", k)),
        log_q=padded(teacher.column("at_ids_log_probs", k)),
        log_p_old=padded(student.column("topk_log_probs", k)),
    )
    others = SupportTensors(
        ids=padded(teacher.column("topk_ids", k)),
        log_q=padded(teacher.column("topk_log_probs", k)),
        log_p_old=padded(pair.log_p_at_teacher),
    )
    values = {
        "log_p": padded(student.column("log_prob")),
        "log_q": padded(teacher.column("log_prob")),
        "student_entropy": padded(student.column("entropy")),
        "teacher_entropy": padded(teacher.column("entropy")),
    }
    mask = padded([np.ones(len(one.response_ids), np.int64) for one in rollouts])
    for value in values.values():
        mask = mask * value.isfinite()
    return Observed(
        **{name: torch.where(mask.bool(), value, 0.0) for name, value in values.items()},
        mask=mask,
        correct=torch.tensor([one.correct for one in rollouts]),
        truncated=torch.tensor([not one.finished for one in rollouts]),
        overlap=measure_overlap(own, others),
    )
