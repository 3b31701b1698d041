"""Divergences on a support: a summand per divergence and a preparation per tail (objectives/README.md 2, 3, 5).

Shapes: K support ids, V vocabulary, any leading dimensions. Natural logs: nats.
"""

import math

import torch
from torch import Tensor

from opd_verl.objectives.names import Divergence, Tail

LOG_ZERO = -1e30
"""A finite stand-in for log 0: its exp is 0, and the difference of two is 0; -inf would give NaN."""
REST_FLOOR = 1e-7
"""Smallest mass of the `bucket` tail's symbol: float32 resolves `1 - sum p` no finer."""


def support_divergence(
    log_p: Tensor,
    log_q: Tensor,
    divergence: Divergence,
    tail: Tail,
    beta: float = 0.5,
    member: Tensor | None = None,
) -> Tensor:
    """`D(p, q) = sum_{v in S} phi(p(v), q(v))`, differentiated exactly through `log_p` (objectives/README.md 3).

    phi: reverse `p log(p / q)` (Capacity eq. 3, Rethinking eq. 5), forward `q log(q / p)`, jsd
    `beta q log(q / m) + (1 - beta) p log(p / m)` with `m = beta q + (1 - beta) p`. `tail` chooses what becomes of the
    probability outside S:

    * renorm: p and q are divided by their sums over S.
    * none: raw masses; the sum can be negative. At q = p the sum is 0 and its gradient is not: the reverse sum pulls
      mass out of S, the forward sum pulls mass into S.
    * bucket: one more symbol has mass `1 - sum_S` on each side, at least REST_FLOOR; the gradient passes the floor.
    * generalised: `phi - p + q` (reverse), `phi - q + p` (forward). For jsd this equals `none`: the two corrections
      `beta (m - q)` and `(1 - beta) (m - p)` cancel.
    * renorm_teacher: q is divided by its sum over S, p stays raw (EOPD eq. 10 with `forward`). At q = p forward is
      `-log sum_S p`, not 0.

    Args:
        log_p: student log-probs of the full softmax at the ids [..., K], nats; carries the gradient.
        log_q: teacher log-probs at these ids [..., K], nats; detached here.
        divergence: chooses phi.
        tail: treatment of the probability outside S, see above.
        beta: the teacher's share of m, in (0, 1); read by jsd alone.
        member: bool [..., K], True where the id belongs to S; None: everywhere.

    Returns:
        D of each token [...], float32 (float64 for a float64 `log_p`), nats; 0 with zero gradient where no id is a
        member. No mean is taken here.

    Raises:
        ValueError: jsd with beta outside (0, 1).
    """
    log_p, log_q = _precise(log_p, log_q.detach())
    if member is not None:
        # Probability 0 on both sides: the summand and its gradient are 0 for every divergence and tail.
        log_p, log_q = log_p.masked_fill(~member, -math.inf), log_q.masked_fill(~member, -math.inf)
    log_p, log_q = with_tail(log_p, log_q, tail)
    terms = summands(log_p, log_q, divergence, beta)
    if tail is Tail.generalised and divergence is not Divergence.jsd:
        surplus = log_p.exp() - log_q.exp()
        terms = terms - surplus if divergence is Divergence.reverse else terms + surplus
    value = terms.sum(dim=-1)
    return value if member is None else torch.where(member.any(dim=-1), value, 0.0)


def summands(log_p: Tensor, log_q: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """phi(p, q) of every symbol, nats, same shape; `0 log 0 = 0`, and p = q = 0 gives 0 and no gradient."""
    if divergence is Divergence.reverse:
        return _times(log_p.exp(), log_p - log_q)
    if divergence is Divergence.forward:
        return _times(log_q.exp(), log_q - log_p)
    log_m = log_mixture(log_p, log_q, beta)
    return beta * _times(log_q.exp(), log_q - log_m) + (1.0 - beta) * _times(log_p.exp(), log_p - log_m)


def with_tail(log_p: Tensor, log_q: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    """log p and log q [..., K] (bucket: [..., K + 1]) after the tail's treatment; -inf where the id is not in S."""
    if tail is Tail.renorm:
        return _renormalised(log_p), _renormalised(log_q)
    if tail is Tail.renorm_teacher:
        return log_p, _renormalised(log_q)
    if tail is Tail.bucket:
        return torch.cat([log_p, _log_rest(log_p)], dim=-1), torch.cat([log_q, _log_rest(log_q)], dim=-1)
    return log_p, log_q


def log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """`log(beta q + (1 - beta) p)`, nats, same shape; ValueError for beta outside (0, 1)."""
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta of jsd is {beta}; it must lie in (0, 1): use the reverse or forward KL for its limits")
    teacher, student = log_q.clamp(min=LOG_ZERO) + math.log(beta), log_p.clamp(min=LOG_ZERO) + math.log1p(-beta)
    return torch.logaddexp(teacher, student)


@torch.no_grad()
def full_slope(log_p: Tensor, log_q: Tensor, divergence: Divergence, beta: float) -> tuple[Tensor, Tensor]:
    """D over the whole vocabulary and dD / dz in closed form, without autograd (objectives/README.md 2).

    z are the student's logits, `log p = log_softmax(z)`:

    * reverse: `dD / dz = p (log(p / q) - KL(p || q))`
    * forward: `dD / dz = p - q`
    * jsd: `dD / dz = (1 - beta) p (log(p / m) - KL(p || m))`

    Each has the form `p (f - sum p f)` of Unmasking eq. 2.11.

    Args:
        log_p: student log-probs over the whole vocabulary [..., V], nats.
        log_q: teacher log-probs [..., V], nats.
        divergence: chooses the row above.
        beta: the teacher's share of m, in (0, 1); read by jsd alone.

    Returns:
        D [...] and dD / dz [..., V] (a new tensor), nats, detached, float32 (float64 for a float64 `log_p`).

    Raises:
        ValueError: jsd with beta outside (0, 1).
    """
    log_p, log_q = _precise(log_p, log_q)
    p, q = log_p.exp(), log_q.exp()
    if divergence is Divergence.forward:
        return _times(q, log_q - log_p).sum(dim=-1), p - q
    log_m = log_q if divergence is Divergence.reverse else log_mixture(log_p, log_q, beta)
    pull = _times(p, log_p - log_m)
    kl = pull.sum(dim=-1)
    slope = pull - p * kl[..., None]
    if divergence is Divergence.reverse:
        return kl, slope
    return beta * _times(q, log_q - log_m).sum(dim=-1) + (1.0 - beta) * kl, (1.0 - beta) * slope


def _precise(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in float32, or in float64 where `log_p` is: 16 bits lose the difference of two close log-probs."""
    log_p = log_p if log_p.dtype == torch.float64 else log_p.float()
    return log_p, log_q.to(log_p.dtype)


def _times(mass: Tensor, logs: Tensor) -> Tensor:
    """`mass * logs`; 0 where the mass is 0, for any log."""
    # `where` on the log, not on the product: the gradient of 0 * inf would be NaN behind the mask.
    return mass * torch.where(mass > 0.0, logs, 0.0)


def _renormalised(logs: Tensor) -> Tensor:
    """Log-probs divided by their sum over S [..., K]; -inf stays -inf."""
    # The clamp keeps logsumexp's gradient finite on a row without members, where all logs are -inf.
    return logs - logs.clamp(min=LOG_ZERO).logsumexp(dim=-1, keepdim=True)


def _log_rest(logs: Tensor) -> Tensor:
    """`log(max(1 - sum exp(logs), REST_FLOOR))` [..., 1]."""
    rest = 1.0 - logs.exp().sum(dim=-1, keepdim=True)
    # A clamp alone has no gradient below the floor. A student without tail mass must still be pulled towards the
    # teacher's tail, so the clamp changes the value and not the gradient.
    return (rest + (rest.clamp(min=REST_FLOOR) - rest).detach()).log()
