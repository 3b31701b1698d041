"""Bytes that leave a process in one training step: between teacher and trainer, and FSDP's collectives."""

from dataclasses import dataclass

from opd_verl.plan.layout import TeacherLayout, TrainerLayout
from opd_verl.plan.shape import ModelShape

TOKEN_BYTES = 4
"""Bytes of a token id on its way to a teacher (int32)."""
REDUCE_BYTES = 4
"""Bytes of a gradient in FSDP's reduce-scatter, which sums in float32."""


@dataclass(frozen=True)
class Traffic:
    """Bytes to and from all replicas of a teacher in a step."""

    asked: float
    answered: float


def answer_bytes(teacher: TeacherLayout, model: ModelShape) -> float:
    """Bytes of one response token in the format of `opd_verl.teacher.wire`: log q, entropy, validity, top-k, log q at
    ids, hidden states."""
    entropy = 0 if teacher.served else 4
    topk = teacher.topk * (3 + teacher.log_prob_bytes)
    hidden = model.hidden * teacher.weight_bytes if teacher.hidden else 0
    return 4 + entropy + 1 / 8 + topk + teacher.at_ids * teacher.log_prob_bytes + hidden


def teacher_traffic(trainer: TrainerLayout, teacher: TeacherLayout, model: ModelShape) -> Traffic:
    """Bytes of all rollouts of a step."""
    responses = trainer.rollouts * trainer.response_tokens
    prompts = trainer.rollouts * (trainer.prompt_tokens + teacher.context_tokens)
    asked = TOKEN_BYTES * (prompts + responses * (1 + teacher.at_ids))
    return Traffic(asked, responses * answer_bytes(teacher, model))


def micro_batches(trainer: TrainerLayout) -> int:
    """Forward and backward passes of a rank in a step, all mini-batches."""
    tokens = trainer.mini_rollouts * trainer.longest / trainer.devices
    return trainer.updates * max(-(-int(tokens) // trainer.micro_tokens), 1)


def fsdp_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """Bytes that a rank receives from its shard group in a step: weights for each pass, gradients for each backward."""
    away = student.total * (trainer.shards - 1) / trainer.shards
    passes = micro_batches(trainer)
    forward_only = max(passes // max(trainer.updates, 1), 1)
    return away * (passes * (2 * trainer.compute_bytes + REDUCE_BYTES) + forward_only * trainer.compute_bytes)


def replica_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """Bytes of gradients that a rank exchanges with the model's other copies in a step (hybrid shard)."""
    copies = trainer.devices // trainer.shards
    return micro_batches(trainer) * 2 * (copies - 1) / copies * REDUCE_BYTES * student.total / trainer.shards
