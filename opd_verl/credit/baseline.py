"""Baseline of the sampled-token reward (credit/README.md 5)."""

from torch import Tensor


def expected_reward(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`sum_{v in S} p(v) (log q(v) - log p(v))`: the expected r_t, a baseline of r_t (credit/README.md 5).

    `r_t` less this baseline has an unchanged expected gradient, since the baseline does not depend on the sampled
    token. The variance often falls, most where the teacher is close to deterministic; for a peaked student far from
    its teacher it can rise. Raw student masses weight the sum; ids outside S count as 0.

    Args:
        log_p: student log-probs at the support's ids [..., K], nats, of the policy that sampled.
        log_q: teacher log-probs at these ids [..., K], nats.

    Returns:
        The baseline of each token [...], float32, nats, detached.
    """
    log_p, log_q = log_p.detach().float(), log_q.detach().float()
    return (log_p.exp() * (log_q - log_p)).sum(dim=-1)
