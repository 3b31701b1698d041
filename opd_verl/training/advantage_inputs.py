"""The fields that the advantage step reads, as padded inputs of the hooks, and those that it writes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from verl.utils.model import get_generation_config

from opd_verl.config.sections import TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.metrics.measurements import Observed
from opd_verl.metrics.overlap import Overlap, measure_overlap
from opd_verl.objectives.names import JOINT_SUPPORTS, Support, Truncation
from opd_verl.objectives.support import SupportTensors, build_support
from opd_verl.schema import JOINT_FIELDS, OFF_POLICY, STUDENT_FIELDS, TEACHER_FIELDS, SupportFields
from opd_verl.training.token_positions import jagged, row_lengths

ADVANTAGE_FIELDS = (
    "responses",
    "response_mask",
    "rm_scores",
    "old_log_probs",
    "entropy",
    "teacher_log_probs",
    "teacher_entropy",
    *(STUDENT_FIELDS.ids, STUDENT_FIELDS.log_q, STUDENT_FIELDS.log_p_old),
    *(TEACHER_FIELDS.ids, TEACHER_FIELDS.log_q, TEACHER_FIELDS.log_p_old),
)


def reward_inputs(data: Any, tokens: TokenConfig, limit: int, end_ids: Iterable[int]) -> RewardInputs:
    """Padded, detached inputs of the hooks from nested fields.

    Args:
        data: ADVANTAGE_FIELDS, as far as the run has them.
        tokens: `opd.tokens`.
        limit: the longest response that the rollout may give.
        end_ids: token ids that end a response.

    A rollout counts as correct where its task score is above 0. Rollouts that `truncated: drop` removes have mask 0.
    """
    truncated = is_truncated(data["responses"], limit, end_ids)
    padded = data.exclude("responses", OFF_POLICY, STUDENT_FIELDS.ids, TEACHER_FIELDS.ids).to_padded_tensor()
    dropped = truncated & (tokens.truncated is Truncation.drop)
    score = padded["rm_scores"].sum(dim=-1)
    return RewardInputs(
        log_p_old=padded["old_log_probs"],
        log_q=padded["teacher_log_probs"],
        mask=padded["response_mask"] * ~dropped[:, None],
        student_entropy=padded["entropy"],
        teacher_entropy=padded.get("teacher_entropy", None),
        task_score=score,
        correct=score > 0,
        truncated=truncated,
        off_policy=data[OFF_POLICY].values() > 0 if OFF_POLICY in data else None,
        log_p_topk=padded.get(STUDENT_FIELDS.log_p_old, None),
        log_q_topk=padded.get(STUDENT_FIELDS.log_q, None),
        tokens=tokens,
    )


def task_rewards(data: Any) -> Tensor:
    """verl's token-level task rewards [B, R], padded as the hooks' inputs are."""
    return data.select("rm_scores").to_padded_tensor()["rm_scores"]


def is_truncated(responses: Any, limit: int, end_ids: Iterable[int]) -> Tensor:
    """Rollouts [B] that reached the length limit without ending on an end-of-sequence token."""
    last = responses.values()[responses.offsets()[1:] - 1]
    ended = torch.isin(last, torch.tensor(sorted(end_ids), dtype=last.dtype))
    return (row_lengths(responses) >= limit) & ~ended


def topk_block(data: Any, names: SupportFields) -> SupportTensors | None:
    """One side's top-k, flat [N, K]; None where the run has none."""
    if names.ids not in data or names.log_p_old not in data:
        return None
    return SupportTensors(
        ids=data[names.ids].values(), log_q=data[names.log_q].values(), log_p_old=data[names.log_p_old].values()
    )


def teacher_top(data: Any) -> tuple[Any, Any] | None:
    """The teacher's top-k ids and their log q, nested [B, R, K]; None in a step that reads none."""
    if TEACHER_FIELDS.ids not in data or TEACHER_FIELDS.log_q not in data:
        return None
    return data[TEACHER_FIELDS.ids], data[TEACHER_FIELDS.log_q]


def first_ids(block: SupportTensors, k: int) -> SupportTensors:
    """The k most likely ids of a block."""
    return SupportTensors(block.ids[:, :k], block.log_q[:, :k], block.log_p_old[:, :k])


def observed(data: Any, inputs: RewardInputs) -> Observed:
    """A step's rollouts for the measurements; the overlap where both sides' top-k is there, at the smaller k."""
    student, teacher = topk_block(data, STUDENT_FIELDS), topk_block(data, TEACHER_FIELDS)
    overlap = None
    if student is not None and teacher is not None:
        k, lengths = min(student.ids.shape[1], teacher.ids.shape[1]), row_lengths(data["response_mask"])
        found = measure_overlap(first_ids(student, k), first_ids(teacher, k))
        overlap = Overlap(*(jagged(value, lengths).to_padded_tensor(0.0) for value in vars(found).values()))
    return Observed(
        log_p=inputs.log_p_old,
        log_q=inputs.log_q,
        student_entropy=inputs.student_entropy,
        teacher_entropy=inputs.teacher_entropy,
        mask=inputs.mask,
        correct=inputs.correct,
        overlap=overlap,
    )


def joint_fields(data: Any, support: Support, k: int, metrics: dict[str, Any]) -> dict[str, Tensor]:
    """The support's own fields where it is made of both sides' top-k, else none; logs its mean size."""
    if support not in JOINT_SUPPORTS:
        return {}
    blocks = (topk_block(data, names) for names in (STUDENT_FIELDS, TEACHER_FIELDS))
    found = build_support(support, *(None if block is None else first_ids(block, k) for block in blocks))
    mask = data["response_mask"].values().float()
    tokens = mask.sum().clamp(min=1)
    metrics["opd/support_size"] = ((found.member.sum(-1) * mask).sum() / tokens).item()
    lengths = row_lengths(data["response_mask"])
    flat = {
        JOINT_FIELDS.ids: found.ids,
        JOINT_FIELDS.log_q: found.log_q,
        JOINT_FIELDS.log_p_old: found.log_p_old,
    }
    return {name: jagged(value, lengths) for name, value in flat.items()}


def end_ids(path: str, tokenizer: Any, trust_remote_code: bool) -> set[int]:
    """Token ids that end a response: the tokenizer's, and those of the model's generation config."""
    config = get_generation_config(path, trust_remote_code=trust_remote_code)
    found = None if config is None else config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return {int(one) for one in (tokenizer.eos_token_id, *several) if one is not None}
