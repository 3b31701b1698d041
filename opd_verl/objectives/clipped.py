"""The clipped surrogate of PPO on a per-token advantage (objectives/README.md 1, EOPD eq. 6-8)."""

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""e^20 is far outside any clip range, and its float32 gradient is still finite."""


def clipped_surrogate(
    log_p: Tensor, log_p_old: Tensor, advantages: Tensor, eps_low: float, eps_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`max(-ratio A, -clip(ratio, 1 - eps_low, 1 + eps_high) A)` with `ratio = p(y) / p_old(y)`, per token.

    With A = r_t and ratio 1, the expected gradient over y ~ p is the gradient of KL(p || q). No mean is taken here: the
    caller divides by its count of tokens.

    Args:
        log_p: student log-prob of the sampled token, nats; any shape, carries the gradient.
        log_p_old: log-prob of the same token under the student that sampled it, same shape; detached.
        advantages: A of each token, same shape, nats; detached.
        eps_low: clip range below 1, in [0, 1).
        eps_high: clip range above 1, >= 0.

    Returns:
        The loss (float32, same shape), whether the clip decided it (bool), and the log-ratio (detached, nats).
    """
    advantages = advantages.detach()
    # float32: near ratio 1 the two log-probs nearly cancel, and 16 bits would round their difference away.
    log_ratio = (log_p.float() - log_p_old.detach().float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_low, 1.0 + eps_high) * advantages
    return plain.maximum(clipped), clipped > plain, log_ratio.detach()
