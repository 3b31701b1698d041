"""The fields that OPD adds to a batch in TransferQueue: from teacher scores to reward inputs.

All are nested over response tokens. `teacher_log_probs` [R], `teacher_entropy` [R], `teacher_valid` [R],
`student_topk_ids` [R, K], `student_topk_log_probs` [R, K], `teacher_log_probs_at_student_topk` [R, K].
A token without a valid teacher value is masked out of `response_mask` and `loss_mask` (so that it leaves the
denominator too), counted, and holds the student's own log-probs: a reward of zero that no sum can see.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from torch import Tensor

from opd_verl.inputs import RewardInputs
from opd_verl.packing import jagged, row_lengths
from opd_verl.teacher.pool import TeacherPool
from opd_verl.teacher.score import ScoreRequest, TeacherScore

ADVANTAGE_FIELDS = [
    "response_mask",
    "rm_scores",
    "old_log_probs",
    "entropy",
    "teacher_log_probs",
    "teacher_entropy",
    "student_topk_log_probs",
    "teacher_log_probs_at_student_topk",
]


def collect_scores(batch: Any, teacher: TeacherPool, step: int, with_topk: bool) -> list[TeacherScore]:
    """The teacher's score of every row, in order; verl's padding rows are not sent and come back as missing."""
    fields = ["prompts", "responses", *(["student_topk_ids"] if with_topk else [])]
    data: Any = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    prompts, responses = data["prompts"].unbind(), data["responses"].unbind()
    topk_ids = data["student_topk_ids"].unbind() if with_topk else None
    requests = [ScoreRequest(batch.keys[row], prompts[row].numpy(), responses[row].numpy()) for row in rows]
    at_ids = [topk_ids[row].numpy().astype(np.int32) for row in rows] if topk_ids else None
    found = dict(zip(rows, teacher.collect(requests, at_ids, step=step), strict=True))
    width = topk_ids[0].shape[1] if topk_ids else 0
    return [found.get(row) or TeacherScore.missing(len(r), at_ids=width) for row, r in enumerate(responses)]


def teacher_fields(batch: Any, scores: list[TeacherScore], metrics: dict[str, Any]) -> dict[str, Tensor]:
    """Nested fields of the scores, with missing tokens masked, neutral and counted in `opd/teacher_missing_share`."""
    data: Any = tq.kv_batch_get(
        keys=batch.keys,
        partition_id=batch.partition_id,
        select_fields=["response_mask", "old_log_probs", "entropy", "student_topk_log_probs"],
    )
    mask, lengths = data["response_mask"].values(), row_lengths(data["response_mask"])
    valid = join(score.valid for score in scores)
    flat = {
        "teacher_log_probs": (join(score.log_q for score in scores), data["old_log_probs"].values()),
        "teacher_entropy": (join(score.entropy for score in scores), data["entropy"].values()),
    }
    if "student_topk_log_probs" in data:
        at_ids = join(score.at_ids_log_q for score in scores).float()
        flat["teacher_log_probs_at_student_topk"] = (at_ids, data["student_topk_log_probs"].values())
    missing = ~valid & mask.bool()
    metrics["opd/teacher_missing_share"] = missing.sum().item() / max(int(mask.sum()), 1)
    if mask.any() and not (mask.bool() & valid).any():
        raise RuntimeError(
            "the teacher gave no valid score for any token of this step: its actors are lost or its weights are NaN "
            "(see the warnings above); the run stops so that the last checkpoint can be resumed"
        )
    fields = {name: fill_missing(value, valid, neutral) for name, (value, neutral) in flat.items()}
    fields["teacher_valid"] = valid.to(mask.dtype)
    if missing.any():
        fields |= {"response_mask": mask * valid, "loss_mask": mask * valid}
    return {name: jagged(value, lengths) for name, value in fields.items()}


def join(parts: Iterable[Tensor | None]) -> Tensor:
    """Rows of all scores in order."""
    every = list(parts)
    found = [part for part in every if part is not None]
    assert len(found) == len(every), "the teacher left out a value that it was asked for"
    return torch.cat(found)


def fill_missing(value: Tensor, valid: Tensor, neutral: Tensor) -> Tensor:
    """`value` where the teacher's answer is valid, the student's own value where it is not."""
    return torch.where(valid.view(-1, *[1] * (value.dim() - 1)), value, neutral.to(value.dtype))


def reward_inputs(data: Any) -> RewardInputs:
    """Padded, detached inputs of the reward hooks from nested fields."""
    padded = data.to_padded_tensor()
    return RewardInputs(
        log_p_old=padded["old_log_probs"],
        log_q=padded["teacher_log_probs"],
        mask=padded["response_mask"],
        student_entropy=padded["entropy"],
        teacher_entropy=padded["teacher_entropy"],
        task_score=padded["rm_scores"].sum(dim=-1),
        log_p_topk=padded.get("student_topk_log_probs", None),
        log_q_topk=padded.get("teacher_log_probs_at_student_topk", None),
    )
