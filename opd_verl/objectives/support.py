"""Which token ids an objective looks at: the two top-k blocks and their combinations (objectives/README.md 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objectives.names import Support

NOT_A_MEMBER = -1


@dataclass(frozen=True, eq=False)
class SupportTensors:
    """K token ids per position, with the log-probs of both sides at them.

    ids: int32 [..., K], -1 where the id does not belong to the support (its log-probs are kept, and stay finite).
    log_q: teacher log-probs float [..., K], nats.
    log_p_old: log-probs of the student that sampled the rollout, float [..., K], nats.
    """

    ids: Tensor
    log_q: Tensor
    log_p_old: Tensor

    @property
    def member(self) -> Tensor:
        """bool [..., K]: True where the id belongs to the support."""
        return self.ids >= 0

    def without(self, out: Tensor) -> "SupportTensors":
        """The same block with the ids marked in `out` (bool [..., K]) taken out of the support."""
        return SupportTensors(self.ids.masked_fill(out, NOT_A_MEMBER), self.log_q, self.log_p_old)


def build_support(support: Support, student: SupportTensors | None, teacher: SupportTensors | None) -> SupportTensors:
    """The support from the student's top-k block [..., K_s] and the teacher's [..., K_t].

    student_topk, teacher_topk: the block itself. intersection [..., K_s]: the student's ids that the teacher has too.
    union [..., K_s + K_t]: the student's ids, then the teacher's others. symmetric_difference [..., K_s + K_t]: the
    student's ids that the teacher lacks, then the teacher's that the student lacks.

    Raises:
        ValueError: `sampled` and `full` are not made of top-k blocks, or a block that the support needs is missing.
    """
    if support in (Support.sampled, Support.full):
        raise ValueError(f"support {support.value!r} is not made of top-k blocks; choose another support")
    if support is Support.student_topk:
        return _present(student, support, "student")
    if support is Support.teacher_topk:
        return _present(teacher, support, "teacher")
    student, teacher = _present(student, support, "student"), _present(teacher, support, "teacher")
    shared_student, shared_teacher = found_in(student.ids, teacher.ids), found_in(teacher.ids, student.ids)
    if support is Support.intersection:
        return student.without(~shared_student)
    first = student if support is Support.union else student.without(shared_student)
    return _joined(first, teacher.without(shared_teacher))


def found_in(ids: Tensor, others: Tensor) -> Tensor:
    """bool [..., K]: which of `ids` [..., K] are among `others` [..., L]; -1 is an id of nobody."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for column in others.unbind(dim=-1):  # one column at a time: no [..., K, L] tensor
        found |= ids == column[..., None]
    return found & (ids >= 0)


def _present(block: SupportTensors | None, support: Support, side: str) -> SupportTensors:
    if block is None:
        raise ValueError(f"support {support.value!r} needs the {side}'s top-k block, and it is missing")
    return block


def _joined(first: SupportTensors, second: SupportTensors) -> SupportTensors:
    return SupportTensors(
        torch.cat([first.ids, second.ids], dim=-1),
        torch.cat([first.log_q, second.log_q], dim=-1),
        torch.cat([first.log_p_old, second.log_p_old], dim=-1),
    )
