"""Shares of uncertain tokens (EOPD 3.1, 5.4 and appendix E), and the mass that a top-k keeps (appendix F).

Shapes: B rollouts, R response tokens, K ids. Full-vocabulary entropies in nats, detached.
"""

from collections.abc import Sequence

from torch import Tensor

from opd_verl.metrics.ratio import Ratio, of_tokens
from opd_verl.metrics.thresholds import FORK_ENTROPY, HIGH_ENTROPY, TAUS


def high_share(entropy: Tensor, mask: Tensor, threshold: float = HIGH_ENTROPY) -> Ratio:
    """Share of pooled tokens with an entropy of at least `threshold` nats."""
    return of_tokens((entropy >= threshold).double(), mask)


def gated_shares(teacher_entropy: Tensor, mask: Tensor, taus: Sequence[float] = TAUS) -> dict[float, Ratio]:
    """Share of pooled tokens at which EOPD's gate is open, `H_t^q > tau`, by tau in nats."""
    return {tau: of_tokens((teacher_entropy > tau).double(), mask) for tau in taus}


def forward_kl_at_forks(forward_kl: Tensor, teacher_entropy: Tensor, mask: Tensor) -> Ratio:
    """Mean forward KL over the tokens with `H_t^q >= 0.8` (EOPD fig. 5), nats; undefined without such a token."""
    return of_tokens(forward_kl, mask.bool() & (teacher_entropy >= FORK_ENTROPY))


def cumulative_mass(log_q_topk: Tensor, mask: Tensor, ks: Sequence[int]) -> dict[int, Ratio]:
    """Mean probability of the k most likely ids, by k <= K; `log_q_topk` [B, R, K] descends (EOPD appendix F)."""
    return {k: of_tokens(log_q_topk[..., :k].double().exp().sum(-1), mask) for k in ks}
