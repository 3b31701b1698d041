"""Token ids of an objective: the two top-k blocks and their combinations (objectives/README.md 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objectives.names import Support

NOT_A_MEMBER = -1
"""Takes the place of an id outside S: every position keeps K columns, and all log-probs stay finite."""


@dataclass(frozen=True, eq=False)
class SupportTensors:
    """K token ids of every position, with the log-probs of both sides at them. Detached."""

    ids: Tensor
    """int32 [..., K]; -1 where the id does not belong to the support."""
    log_q: Tensor
    """Teacher log-probs, float [..., K], nats."""
    log_p_old: Tensor
    """Log-probs of the student that sampled the rollout, float [..., K], nats."""

    @property
    def member(self) -> Tensor:
        """bool [..., K]: True where the id belongs to the support."""
        return self.ids >= 0

    def without(self, out: Tensor) -> "SupportTensors":
        """A copy in which the ids marked in `out` (bool [..., K]) are no members."""
        return SupportTensors(self.ids.masked_fill(out, NOT_A_MEMBER), self.log_q, self.log_p_old)


def build_support(support: Support, student: SupportTensors | None, teacher: SupportTensors | None) -> SupportTensors:
    """The support made of the student's top-k block [..., K_s] and the teacher's [..., K_t].

    student_topk, teacher_topk: the block itself. intersection [..., K_s]: ids of the student that the teacher has too.
    union [..., K_s + K_t]: ids of the student, then ids that the teacher alone has. symmetric_difference
    [..., K_s + K_t]: ids that the student alone has, then ids that the teacher alone has.

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
    shared_student, shared_teacher = members_of(student.ids, teacher.ids), members_of(teacher.ids, student.ids)
    if support is Support.intersection:
        return student.without(~shared_student)
    first = student if support is Support.union else student.without(shared_student)
    return _joined(first, teacher.without(shared_teacher))


def members_of(ids: Tensor, others: Tensor) -> Tensor:
    """bool [..., K]: True where an id of `ids` [..., K] is among `others` [..., L]; always False at -1."""
    shared = torch.zeros_like(ids, dtype=torch.bool)
    for column in others.unbind(dim=-1):  # column by column, so that no [..., K, L] tensor is made
        shared |= ids == column[..., None]
    return shared & (ids >= 0)


def _present(block: SupportTensors | None, support: Support, side: str) -> SupportTensors:
    """The block, or a ValueError that names the missing side."""
    if block is None:
        raise ValueError(f"support {support.value!r} needs the {side}'s top-k block, and it is missing")
    return block


def _joined(first: SupportTensors, second: SupportTensors) -> SupportTensors:
    """The ids of both blocks side by side [..., K_1 + K_2]."""
    return SupportTensors(
        torch.cat([first.ids, second.ids], dim=-1),
        torch.cat([first.log_q, second.log_q], dim=-1),
        torch.cat([first.log_p_old, second.log_p_old], dim=-1),
    )
