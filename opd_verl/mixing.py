"""Distillation mixed with a task reward (METHODS 1.8)."""

from torch import Tensor


def mix_advantages(task: Tensor | None, opd: Tensor | None, task_weight: float, opd_weight: float) -> Tensor:
    """`A = w_task A_task + w_opd A_opd` [B, R].

    With one weight 0 its side is not read at all: `w_opd = 0` gives the task's advantage to the bit (GRPO), whatever
    the teacher said, infinities and NaN included; `w_task = 0` gives distillation's to the bit.

    Args:
        task: A_task [B, R] from verl's estimator; may be None where its weight is 0.
        opd: A_opd [B, R], nats; may be None where its weight is 0.
        task_weight: w_task.
        opd_weight: w_opd.
    """
    if opd_weight == 0:
        assert task is not None
        return task_weight * task
    if task_weight == 0:
        assert opd is not None
        return opd_weight * opd
    assert task is not None and opd is not None and task.shape == opd.shape
    return task_weight * task + opd_weight * opd
