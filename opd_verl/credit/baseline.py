"""A control variate of the sampled-token reward (credit/README.md 5)."""

from torch import Tensor


def expected_reward(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`E_{v ~ p, v in S} [log q(v) - log p(v)]`: the control variate of the sampled-token reward (credit/README.md 5).

    Subtracting it from `r_t` leaves the expected gradient as it is (it does not depend on the sampled token) and often
    lowers its variance, most where the teacher is close to deterministic; on a peaked student far from the teacher it
    can raise it. Raw student masses weight the sum; what lies outside S is left out.

    Args:
        log_p: student log-probs at the support's ids [..., K], nats, of the policy that sampled.
        log_q: teacher log-probs at the same ids [..., K], nats.

    Returns:
        [...] float32, nats, detached.
    """
    log_p, log_q = log_p.detach().float(), log_q.detach().float()
    return (log_p.exp() * (log_q - log_p)).sum(dim=-1)
