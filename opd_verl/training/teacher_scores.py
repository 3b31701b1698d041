"""Teacher scores become fields of the batch in TransferQueue, all jagged over response tokens.

`teacher_log_probs` [R], `teacher_entropy` [R], `teacher_valid` [R], `teacher_log_probs_at_student_topk` [R, K],
`teacher_topk_ids` and `teacher_topk_log_probs` [R, K], `teacher_hidden` [R, H].

A token without a valid teacher value is masked: `response_mask` and `loss_mask` become 0 there, so that it also leaves
the loss's denominator. It is counted, and its fields hold a neutral value that no sum sees.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transfer_queue import KVBatchMeta

from opd_verl.schema import (
    STUDENT_FIELDS,
    TEACHER_ENTROPY,
    TEACHER_FIELDS,
    TEACHER_HIDDEN,
    TEACHER_LOG_PROBS,
    TEACHER_VALID,
)
from opd_verl.teacher.client.several import Teacher, routes
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.training.token_positions import jagged, row_lengths
from opd_verl.training.transfer import read_fields
from opd_verl.training.verl_types import as_tensordict


def collect_scores(
    batch: KVBatchMeta,
    teacher: Teacher,
    step: int,
    topk: int = 0,
    at_student_topk: bool = False,
    hidden: bool = False,
    entropy: bool = True,
    prompts_field: str = "prompts",
    route_field: str | None = None,
) -> list[TeacherScore]:
    """The teacher's score of every row, in order; verl's padding rows are not sent and come back as missing.

    Args:
        topk: how many of the teacher's most likely ids to ask for.
        at_student_topk: whether to ask for log q at `student_topk_ids`.
        hidden: whether to ask for last hidden states.
        entropy: whether to ask for the entropy.
        prompts_field: the field with the prompt that the teacher reads.
        route_field: the field that picks a row's teacher; None: all rows go to the same teachers.
    """
    wanted = [prompts_field, "responses", STUDENT_FIELDS.ids if at_student_topk else None, route_field]
    data = read_fields(batch, [name for name in wanted if name is not None])
    # verl appends synthetic rows so that the batch divides among its ranks; they are tagged and not scored.
    rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    prompts, responses = data[prompts_field].unbind(), data["responses"].unbind()
    topk_ids = data[STUDENT_FIELDS.ids].unbind() if at_student_topk else None
    route = routes(as_tensordict(data), route_field) if route_field is not None else [""] * len(prompts)
    requests = [ScoreRequest(batch.keys[row], prompts[row].numpy(), responses[row].numpy(), route[row]) for row in rows]
    at_ids = [topk_ids[row].numpy().astype(np.int32) for row in rows] if topk_ids else None
    scores = teacher.collect(requests, at_ids, CollectSpec(step, topk, entropy, hidden))
    by_row = dict(zip(rows, scores, strict=True))
    like = next(iter(by_row.values()))
    return [by_row.get(row) or missing_like(like, len(response)) for row, response in enumerate(responses)]


def missing_like(score: TeacherScore, length: int) -> TeacherScore:
    """A score of `length` tokens with the fields of `score` and no valid value."""
    width = {name: 0 if value is None else value.shape[1] for name, value in vars(score).items() if is_wide(name)}
    dtype = torch.float32 if score.hidden is None else score.hidden.dtype
    entropy = score.entropy is not None
    return TeacherScore.missing(
        length, width["topk_log_q"], width["at_ids_log_q"], entropy, hidden=width["hidden"], hidden_dtype=dtype
    )


def is_wide(name: str) -> bool:
    """Whether a field of TeacherScore has a second dimension."""
    return name in ("topk_log_q", "at_ids_log_q", "hidden")


def merge(early: list[TeacherScore], late: list[TeacherScore]) -> list[TeacherScore]:
    """The early scores with log q at the student's ids from the late scores; a token is valid where both scores are."""
    pairs = zip(early, late, strict=True)
    return [
        replace(first, valid=first.valid & second.valid, at_ids_log_q=second.at_ids_log_q) for first, second in pairs
    ]


def teacher_topk_fields(batch: KVBatchMeta, scores: list[TeacherScore]) -> dict[str, Tensor]:
    """The teacher's top-k for the log-prob pass, which reads the student at those ids; a missing score has id 0."""
    lengths = row_lengths(read_fields(batch, ["response_mask"])["response_mask"])
    return {TEACHER_FIELDS.ids: jagged(join(score.topk_ids for score in scores), lengths)}


def teacher_fields(
    batch: KVBatchMeta, scores: list[TeacherScore], max_missing_share: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Jagged fields of the scores with missing tokens masked and neutral, and `opd/teacher_missing_share`.

    Raises RuntimeError: `missing_share`.
    """
    data = read_fields(batch, ["response_mask", "old_log_probs", "entropy", STUDENT_FIELDS.log_p_old])
    mask, lengths = data["response_mask"].values(), row_lengths(data["response_mask"])
    valid = join(score.valid for score in scores)
    share = missing_share(mask.bool(), valid, max_missing_share)
    # The mask multiplies a masked token's loss by 0, and NaN times 0 is NaN: every neutral value must give a finite
    # loss. The student's own values mean q = p and r_t = 0; the teacher's top-k becomes uniform.
    flat = {
        TEACHER_LOG_PROBS: (join(score.log_q for score in scores), data["old_log_probs"].values()),
    }
    if scores[0].entropy is not None:
        flat[TEACHER_ENTROPY] = (join(score.entropy for score in scores), data["entropy"].values())
    if scores[0].at_ids_log_q is not None:
        # Log-probs may have travelled as float16; every objective computes in float32.
        at_ids = join(score.at_ids_log_q for score in scores).float()
        flat[STUDENT_FIELDS.log_q] = (at_ids, data[STUDENT_FIELDS.log_p_old].values())
    if scores[0].topk_log_q is not None:
        log_q = join(score.topk_log_q for score in scores).float()
        flat[TEACHER_FIELDS.log_q] = (log_q, torch.tensor(-math.log(log_q.shape[1])))
    if scores[0].hidden is not None:
        # Hidden states keep the teacher's dtype: float32 would double the largest field of the batch.
        flat[TEACHER_HIDDEN] = (join(score.hidden for score in scores), torch.tensor(0.0))
    fields = {name: fill_missing(value, valid, neutral) for name, (value, neutral) in flat.items()}
    fields[TEACHER_VALID] = valid.to(mask.dtype)
    if (~valid & mask.bool()).any():
        fields |= {"response_mask": mask * valid, "loss_mask": mask * valid}
    return {name: jagged(value, lengths) for name, value in fields.items()}, {"opd/teacher_missing_share": share}


def missing_share(mask: Tensor, valid: Tensor, limit: float) -> float:
    """The share of response tokens without a score.

    Raises:
        RuntimeError: the share is above `limit`, or no token has a score: training on would learn little or nothing.
    """
    missing, tokens = int((~valid & mask).sum()), int(mask.sum())
    if missing and (missing > limit * tokens or missing == tokens):
        raise RuntimeError(
            f"the teacher gave no valid score for {missing} of this step's {tokens} response tokens, above "
            f"opd.teacher.max_missing_share={limit:g}: its actors are lost or its weights are NaN (see the warnings "
            "above); the run stops so that the last checkpoint can be resumed"
        )
    return missing / max(tokens, 1)


def join(parts: Iterable[Tensor | None]) -> Tensor:
    """A field of all scores, rows in order, flat."""
    every = list(parts)
    there = [part for part in every if part is not None]
    assert len(there) == len(every), "the teacher left out a value that it was asked for"
    return torch.cat(there)


def fill_missing(value: Tensor, valid: Tensor, neutral: Tensor) -> Tensor:
    """`value` where the teacher's answer is valid, the neutral value where it is not."""
    return torch.where(valid.view(-1, *[1] * (value.dim() - 1)), value, neutral.to(value.dtype))
