"""Measures a student for the findings: accuracy, distance from the teacher, entropy.

Shapes: T response tokens of all rollouts, V ids. Log-probs, entropies and KLs in nats.
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
    """Measurements of a student on held-out problems, pooled over the tokens of its own responses."""

    accuracy: float
    """avg@k at temperature 1, 0 to 1."""
    reverse_kl: float
    """Mean KL(student || teacher) over the whole vocabulary, nats per token."""
    entropy: float
    """Mean student entropy, nats."""
    high_entropy_share: float
    """Share of tokens at which the student's entropy is at least 1.0 (EOPD 3.1)."""
    teacher_high_entropy_share: float
    """Share of these tokens at which the teacher's entropy is also at least 1.0."""
    forward_kl_at_forks: float
    """Mean forward KL on the teacher's top 16 (EOPD eq. 10) at tokens with teacher entropy >= 0.8 nats; 0 without such
    tokens; nats."""
    overlap: float
    """Mean of |top 16 of p ∩ top 16 of q| / 16, 0 to 1."""
    overlap_advantage: float
    """Mean advantage of the ids in both top 16 (Rethinking eq. 7), nats; rises to 0."""
    length: float
    """Mean response length, tokens."""


def entropy(log_p_TV: Tensor) -> Tensor:
    """Returns the entropy at each token, [T]."""
    return -(log_p_TV.exp() * log_p_TV).sum(dim=-1)


def top_block(ranked_TV: Tensor, log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> SupportTensors:
    """Returns the k likeliest ids by `ranked_TV`, with the log-probs of both models at them, [T, k]."""
    ids = ranked_TV.topk(min(k, ranked_TV.shape[1]), dim=-1).indices
    return SupportTensors(ids.int(), log_q_TV.gather(-1, ids), log_p_TV.gather(-1, ids))


def overlap(log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> Overlap:
    """Compares the top k of both models at every token."""
    return measure_overlap(*(top_block(side, log_p_TV, log_q_TV, k) for side in (log_p_TV, log_q_TV)))


def overlap_advantage(log_p_TV: Tensor, log_q_TV: Tensor, k: int) -> float:
    """Returns the mean of Rethinking's eq. 7 over tokens; a token whose top k share no id counts as 0."""
    return overlap(log_p_TV, log_q_TV, k).advantage.nan_to_num(0.0).mean().item()


def forward_kl_at_forks(log_p_TV: Tensor, log_q_TV: Tensor) -> float:
    """Returns the mean of EOPD's forward KL over tokens at which the teacher is uncertain; 0 without such tokens."""
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
    """Samples `samples` responses per problem at temperature 1, grades them, and reads both models on them."""
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
