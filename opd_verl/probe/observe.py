"""The readings of a pair as padded tensors, in the form that `opd_verl.metrics.measurements` takes.

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
    """A student and a teacher by name, with their readings as arrays and as tensors."""

    student: str
    teacher: str
    readings: PairReadings
    observed: Observed


def padded(rows: Arrays) -> Tensor:
    """[B, R] or [B, R, K]; 0 after the end of each row."""
    return pad_sequence([torch.from_numpy(np.array(row)) for row in rows], batch_first=True)


def observe(readings: PairReadings, rollouts: list[Rollout]) -> Observed:
    """The pair on the student's rollouts. Tokens without finite values of both models are masked."""
    k, student, teacher = readings.k, readings.student, readings.teacher
    on_student_topk = SupportTensors(
        ids=padded(student.column("topk_ids", k)),
        log_q=padded(teacher.column("at_ids_log_probs", k)),
        log_p_old=padded(student.column("topk_log_probs", k)),
    )
    on_teacher_topk = SupportTensors(
        ids=padded(teacher.column("topk_ids", k)),
        log_q=padded(teacher.column("topk_log_probs", k)),
        log_p_old=padded(readings.log_p_at_teacher),
    )
    values = {
        "log_p": padded(student.column("log_prob")),
        "log_q": padded(teacher.column("log_prob")),
        "student_entropy": padded(student.column("entropy")),
        "teacher_entropy": padded(teacher.column("entropy")),
    }
    mask = padded([np.ones(len(rollout.response_ids), np.int64) for rollout in rollouts])
    for value in values.values():
        mask = mask * value.isfinite()
    return Observed(
        # Masked values become 0.0: NaN times a mask of 0 would still be NaN.
        **{name: torch.where(mask.bool(), value, 0.0) for name, value in values.items()},
        mask=mask,
        correct=torch.tensor([rollout.correct for rollout in rollouts]),
        truncated=torch.tensor([not rollout.finished for rollout in rollouts]),
        overlap=measure_overlap(on_student_topk, on_teacher_topk),
    )
