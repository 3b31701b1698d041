"""Inputs of the advantage step: the batch's jagged fields as the padded tensors that hooks and measurements read."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from verl.utils.model import get_generation_config

from opd_verl.config.sections import TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.metrics.measurements import Observed
from opd_verl.metrics.overlap import Overlap, measure_overlap
from opd_verl.objectives.names import JOINT_SUPPORTS, Support, Truncation
from opd_verl.objectives.support import SupportTensors, build_support
from opd_verl.schema import (
    JOINT_FIELDS,
    OFF_POLICY,
    STUDENT_FIELDS,
    TEACHER_ENTROPY,
    TEACHER_FIELDS,
    TEACHER_LOG_PROBS,
    SupportFields,
)
from opd_verl.training.token_positions import jagged, offsets, row_lengths
from opd_verl.training.verl_types import Fields

ADVANTAGE_FIELDS = (
    "responses",
    "response_mask",
    "rm_scores",
    "old_log_probs",
    "entropy",
    TEACHER_LOG_PROBS,
    TEACHER_ENTROPY,
    *(STUDENT_FIELDS.ids, STUDENT_FIELDS.log_q, STUDENT_FIELDS.log_p_old),
    *(TEACHER_FIELDS.ids, TEACHER_FIELDS.log_q, TEACHER_FIELDS.log_p_old),
)
"""Fields that the advantage step asks TransferQueue for; a run has only some of them."""


def reward_inputs(data: Fields, tokens: TokenConfig, limit: int, end_ids: Iterable[int]) -> RewardInputs:
    """Padded, detached inputs of the hooks.

    Args:
        data: the fields of ADVANTAGE_FIELDS that the run has.
        tokens: `opd.tokens`.
        limit: longest response that the rollout may give, tokens.
        end_ids: token ids that end a response.

    A rollout counts as correct where its task score is above 0. Rollouts that `truncated: drop` removes have mask 0.
    """
    truncated = is_truncated(data["responses"], limit, end_ids)
    # No hook reads token ids, and OFF_POLICY has one value per rollout, not one per token: neither is padded.
    padded = data.exclude("responses", OFF_POLICY, STUDENT_FIELDS.ids, TEACHER_FIELDS.ids).to_padded_tensor()
    dropped = truncated & (tokens.truncated is Truncation.drop)
    # verl puts a rollout's whole task score on its last token, so the sum over tokens is the score.
    score = padded["rm_scores"].sum(dim=-1)
    return RewardInputs(
        log_p_old=padded["old_log_probs"],
        log_q=padded[TEACHER_LOG_PROBS],
        mask=padded["response_mask"] * ~dropped[:, None],
        student_entropy=padded["entropy"],
        teacher_entropy=padded.get(TEACHER_ENTROPY, None),
        task_score=score,
        correct=score > 0,
        truncated=truncated,
        off_policy=data[OFF_POLICY].values() > 0 if OFF_POLICY in data else None,
        log_p_topk=padded.get(STUDENT_FIELDS.log_p_old, None),
        log_q_topk=padded.get(STUDENT_FIELDS.log_q, None),
        tokens=tokens,
    )


def task_rewards(data: Fields) -> Tensor:
    """verl's token-level task rewards, padded like the hooks' inputs: [B, R]."""
    return data.select("rm_scores").to_padded_tensor()["rm_scores"]


def is_truncated(responses: Tensor, limit: int, end_ids: Iterable[int]) -> Tensor:
    """Whether each rollout reached the length limit without an end-of-sequence token: bool [B]; `responses` jagged."""
    last = responses.values()[offsets(responses)[1:] - 1]  # the last token of each row
    ended = torch.isin(last, torch.tensor(sorted(end_ids), dtype=last.dtype))
    return (row_lengths(responses) >= limit) & ~ended


def topk_block(data: Fields, names: SupportFields) -> SupportTensors | None:
    """The top-k of student or teacher, flat [N, K]; None where the run has none."""
    if names.ids not in data or names.log_p_old not in data:
        return None
    return SupportTensors(
        ids=data[names.ids].values(), log_q=data[names.log_q].values(), log_p_old=data[names.log_p_old].values()
    )


def teacher_top(data: Fields) -> tuple[Tensor, Tensor] | None:
    """The teacher's top-k ids and their log q, jagged [B, R, K]; None in a step that reads none."""
    if TEACHER_FIELDS.ids not in data or TEACHER_FIELDS.log_q not in data:
        return None
    return data[TEACHER_FIELDS.ids], data[TEACHER_FIELDS.log_q]


def first_ids(block: SupportTensors, k: int) -> SupportTensors:
    """The k most likely ids of a block."""
    return SupportTensors(block.ids[:, :k], block.log_q[:, :k], block.log_p_old[:, :k])


def observed(data: Fields, inputs: RewardInputs) -> Observed:
    """The step's rollouts for the measurements. With both top-k in the batch: also their overlap, at the smaller k."""
    student, teacher = topk_block(data, STUDENT_FIELDS), topk_block(data, TEACHER_FIELDS)
    overlap = None
    if student is not None and teacher is not None:
        k, lengths = min(student.ids.shape[1], teacher.ids.shape[1]), row_lengths(data["response_mask"])
        flat = measure_overlap(first_ids(student, k), first_ids(teacher, k))
        overlap = Overlap(*(jagged(value, lengths).to_padded_tensor(0.0) for value in vars(flat).values()))
    return Observed(
        log_p=inputs.log_p_old,
        log_q=inputs.log_q,
        student_entropy=inputs.student_entropy,
        teacher_entropy=inputs.teacher_entropy,
        mask=inputs.mask,
        correct=inputs.correct,
        overlap=overlap,
    )


def joint_support(data: Fields, support: Support, k: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Jagged JOINT_FIELDS and their mean size for a support made of both top-k; nothing for any other support."""
    if support not in JOINT_SUPPORTS:
        return {}, {}
    blocks = (topk_block(data, names) for names in (STUDENT_FIELDS, TEACHER_FIELDS))
    joint = build_support(support, *(None if block is None else first_ids(block, k) for block in blocks))
    mask = data["response_mask"].values().float()
    tokens = mask.sum().clamp(min=1)
    size = ((joint.member.sum(-1) * mask).sum() / tokens).item()
    lengths = row_lengths(data["response_mask"])
    flat = {
        JOINT_FIELDS.ids: joint.ids,
        JOINT_FIELDS.log_q: joint.log_q,
        JOINT_FIELDS.log_p_old: joint.log_p_old,
    }
    return {name: jagged(value, lengths) for name, value in flat.items()}, {"opd/support_size": size}


def end_ids(path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> set[int]:
    """Token ids that end a response, from the tokenizer and from the model's generation config."""
    config = get_generation_config(path, trust_remote_code=trust_remote_code)
    configured = None if config is None else config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    # transformers allows any value of a config file as the type; the end id of a language model is one integer.
    end = cast(int | None, tokenizer.eos_token_id)
    return {int(token) for token in (end, *several) if token is not None}
