"""The exact reverse KL on a support of K token ids (METHODS 1.3, Capacity eq. 3, Rethinking eq. 5)."""

from torch import Tensor


def renormalised_reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(pbar || qbar) = sum_S pbar (log pbar - log qbar)`, both sides renormalised on the support S.

    Differentiated exactly through `log_p`: the renormalisation is part of the graph, so the gradient carries the
    baseline `-KL` that a policy gradient on the same weights drops.

    Args:
        log_p: student log-probs at the support's ids [..., K], nats; carries the gradient.
        log_q: teacher log-probs at the same ids [..., K], nats; no gradient flows.

    Returns:
        [...] float32, nats, >= 0.
    """
    log_pbar = log_p.float().log_softmax(dim=-1)
    log_qbar = log_q.detach().float().log_softmax(dim=-1)
    return (log_pbar.exp() * (log_pbar - log_qbar)).sum(dim=-1)


def expected_reward(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`E_{v ~ p, v in S} [log q(v) - log p(v)]`: the control variate of the sampled-token reward (METHODS 1.7).

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
