"""What the findings compare: a student's accuracy, its distance from the teacher, and what is left of its entropy.

Shapes: T response tokens of all rollouts, V token ids. Nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd_verl.metrics.overlap import Overlap, measure_overlap
from opd_verl.metrics.thresholds import FORK_ENTROPY, HIGH_ENTROPY
from opd_verl.objectives.support import SupportTensors
from opd_verl.quickstart.evaluate import grade, overlap_ratio, response_log_probs, sample
from opd_verl.quickstart.task import Addition

TOP = 16


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


def top_block(of_TV: Tensor, log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> SupportTensors:
    """The k most likely ids of one side, with both sides' log-probs at them, [T, k]."""
    ids = of_TV.topk(min(k, of_TV.shape[1]), dim=-1).indices
    return SupportTensors(ids.int(), log_q_TV.gather(-1, ids), log_p_TV.gather(-1, ids))


def overlap(log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> Overlap:
    """Of both sides' top k at every token."""
    return measure_overlap(*(top_block(side, log_p_TV, log_q_TV, k) for side in (log_p_TV, log_q_TV)))


def overlap_advantage(log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> float:
    """Rethinking eq. 7, mean over t; a t whose two top k share no id is 0."""
    return overlap(log_p_TV, log_q_TV, k).advantage.nan_to_num(0.0).mean().item()


def forward_kl_at_forks(log_p_TV: Tensor, log_q_TV: Tensor) -> float:
    """Mean of EOPD's forward KL over the tokens where the teacher is uncertain; 0 without any."""
    forks = entropy(log_q_TV) >= FORK_ENTROPY
    return overlap(log_p_TV[forks], log_q_TV[forks], TOP).forward_kl.mean().item() if forks.any() else 0.0


@torch.inference_mode()
def measure(
    student: Qwen3ForCausalLM,
    teacher: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Addition],
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
        high_entropy_share=(own >= HIGH_ENTROPY).float().mean().item(),
        teacher_high_entropy_share=(teachers >= HIGH_ENTROPY).float().mean().item(),
        forward_kl_at_forks=forward_kl_at_forks(log_p_TV, log_q_TV),
        overlap=overlap_ratio(log_p_TV, log_q_TV, TOP),
        overlap_advantage=overlap_advantage(log_p_TV, log_q_TV, TOP),
        length=result.mean_length,
    )
