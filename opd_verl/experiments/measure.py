"""What the findings compare: a student's accuracy, its distance from the teacher, and what is left of its entropy.

Shapes: T response tokens of all rollouts, V token ids. Nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail
from opd_verl.quickstart.evaluate import grade, overlap_ratio, response_log_probs, sample
from opd_verl.quickstart.task import Problem

HIGH_STUDENT_ENTROPY, HIGH_TEACHER_ENTROPY, TOP = 1.0, 0.8, 16
"""EOPD 3.1 counts a token as high-entropy from 1.0; the forward KL is measured where the teacher's exceeds 0.8."""


@dataclass(frozen=True)
class Measurement:
    """Of one student on held-out problems, pooled over the tokens of its own responses; nats per token."""

    accuracy: float
    """avg@k at temperature 1, 0 to 1."""
    reverse_kl: float
    """KL(student || teacher), whole vocabulary."""
    entropy: float
    """Mean student entropy."""
    high_entropy_share: float
    """Share of tokens where the student's entropy is at least 1.0 (EOPD 3.1)."""
    teacher_high_entropy_share: float
    """The same of the teacher's entropy, at the same tokens."""
    forward_kl_at_forks: float
    """Mean FKL on the teacher's top 16 (EOPD eq. 10) where the teacher's entropy is at least 0.8; 0 without any."""
    overlap: float
    """Mean |top 16 of p ∩ top 16 of q| / 16."""
    overlap_advantage: float
    """Mean advantage of the tokens in both top 16 (Rethinking eq. 7); rises to 0."""
    length: float
    """Mean response length, tokens."""


def entropy(log_p_TV: Tensor) -> Tensor:
    """H [T]."""
    return -(log_p_TV.exp() * log_p_TV).sum(dim=-1)


def forward_kl_at_forks(log_p_TV: Tensor, log_q_TV: Tensor) -> float:
    """Mean of EOPD's forward KL over the tokens where the teacher is uncertain."""
    forks = entropy(log_q_TV) >= HIGH_TEACHER_ENTROPY
    if not forks.any():
        return 0.0
    top = log_q_TV[forks].topk(min(TOP, log_q_TV.shape[1]), dim=-1)
    log_p = log_p_TV[forks].gather(-1, top.indices)
    return support_divergence(log_p, top.values, Divergence.forward, Tail.renorm_teacher).mean().item()


def overlap_advantage(log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> float:
    """Mean over t of the mean over v in both top k of pbar (log qbar - log pbar) (Rethinking eq. 7).

    pbar and qbar are renormalised on the student's top k, the support that is trained on; a t without such a v is 0.
    """
    top_TK = log_p_TV.topk(k, dim=-1).indices
    teachers_TK = log_q_TV.topk(k, dim=-1).indices
    shared_TK = (top_TK[:, :, None] == teachers_TK[:, None, :]).any(dim=-1)
    log_p, log_q = (log_probs.gather(-1, top_TK).log_softmax(dim=-1) for log_probs in (log_p_TV, log_q_TV))
    advantage_TK = log_p.exp() * (log_q - log_p) * shared_TK
    return (advantage_TK.sum(dim=-1) / shared_TK.sum(dim=-1).clamp(min=1)).mean().item()


@torch.inference_mode()
def measure(
    student: Qwen3ForCausalLM,
    teacher: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    samples: int = 4,
) -> Measurement:
    """Samples `samples` responses a problem at temperature 1, grades them, and reads both models on them."""
    rollouts = sample(student, tokenizer, problems, samples)
    result = grade(rollouts, tokenizer, problems)
    log_p_TV = response_log_probs(student, rollouts, len(tokenizer))
    log_q_TV = response_log_probs(teacher, rollouts, len(tokenizer))
    own, teachers = entropy(log_p_TV), entropy(log_q_TV)
    return Measurement(
        accuracy=result.accuracy,
        reverse_kl=(log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean().item(),
        entropy=own.mean().item(),
        high_entropy_share=(own >= HIGH_STUDENT_ENTROPY).float().mean().item(),
        teacher_high_entropy_share=(teachers >= HIGH_STUDENT_ENTROPY).float().mean().item(),
        forward_kl_at_forks=forward_kl_at_forks(log_p_TV, log_q_TV),
        overlap=overlap_ratio(log_p_TV, log_q_TV, TOP),
        overlap_advantage=overlap_advantage(log_p_TV, log_q_TV, TOP),
        length=result.mean_length,
    )
