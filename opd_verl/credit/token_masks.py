"""Masks: the response tokens that distillation trains on (credit/README.md 1). Pure functions.

All functions return bool [B, R], False where `mask` is 0. Shapes: B rollouts, R response tokens. Entropies and rewards
are in nats, detached. A choice within a rollout reads only this rollout's unmasked tokens: padding and other rollouts
do not change it.
"""

import torch
from torch import Tensor

from opd_verl.objectives.names import Truncation

ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996 in float64; its floor is meant to be 29."""


def top_share(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """The `max(1, floor(share * n))` tokens of largest value among each rollout's n tokens, bool [B, R] (Capacity 5.3).

    Among equal values the earlier position comes first, so a rerun selects the same tokens.

    Args:
        values: student or teacher entropy [B, R].
        mask: 1 on response tokens [B, R].
        share: in [0, 1]; Capacity's fork tokens are 0.2.
    """
    # torch.topk breaks ties in no fixed order, so it only finds the least kept value. The first positions with exactly
    # this value then fill the room that larger values leave.
    present = mask.bool()
    count = (share * present.sum(dim=-1, keepdim=True).double() + ROUNDING).floor().clamp(min=1).long()
    known = values.masked_fill(~present, -torch.inf)
    least = known.topk(int(count.max()), dim=-1).values.gather(-1, count - 1)
    above, level = known > least, (known == least) & present
    room = count - above.sum(dim=-1, keepdim=True)
    return above | (level & (level.cumsum(dim=-1) <= room))


def either(first: Tensor, second: Tensor) -> Tensor:
    """Tokens in at least one of two masks, bool [B, R]."""
    return first.bool() | second.bool()


def in_q3(reward: Tensor, student_entropy: Tensor, low_entropy: float) -> Tensor:
    """Quadrant Q3, "forced correction" (Capacity table 5): `r_t < 0` and `H_t^p < low_entropy`, bool [B, R].

    The paper: "The student is highly confident at position t, yet a negative reward from the teacher pushes it away
    from its own prediction." The paper's threshold is 0.3 nats; a token at the threshold counts as forking.
    """
    return (reward < 0) & (student_entropy < low_entropy)


def drop_q3(reward: Tensor, student_entropy: Tensor, mask: Tensor, low_entropy: float) -> Tensor:
    """All tokens outside quadrant Q3, bool [B, R]. Arguments: see `in_q3`."""
    return mask.bool() & ~in_q3(reward, student_entropy, low_entropy)


def drop_destructive_q3(
    reward: Tensor, student_entropy: Tensor, correct: Tensor, mask: Tensor, low_entropy: float
) -> Tensor:
    """All tokens except the Q3 tokens of correct rollouts, bool [B, R] (Capacity 5.3).

    The paper: "Destructive Q3: the student rollout reaches the *correct* final answer, yet at this position the teacher
    pulls the student off a confidently-correct token. [...] Corrective Q3: the student rollout reaches an *incorrect*
    final answer, and the teacher provides a correction at this position." Corrective Q3 tokens stay.

    Args:
        reward: r_t [B, R], nats.
        student_entropy: H_t^p [B, R], nats.
        correct: whether the rollout is correct, bool [B].
        mask: 1 on response tokens [B, R].
        low_entropy: student entropy below which a token counts as confident, nats.
    """
    destructive = in_q3(reward, student_entropy, low_entropy) & correct.bool()[:, None]
    return mask.bool() & ~destructive


def high_divergence(reward: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """Tokens whose `|r_t|` is at or above the quantile of `|r|` within their rollout, bool [B, R].

    Unmasking (4.3, E.7): alignment with the ideal gradient grows with the divergence of teacher and student, "high
    divergence is necessary but not sufficient". Here `|r_t|` stands for the divergence at the sampled token.

    A linearly interpolated quantile lies between two neighbours in sorted order. A token is at or above it where it is
    at or above the upper neighbour, so nothing is interpolated and no rounding drops the token at the quantile.

    Args:
        reward: r_t [B, R], nats.
        mask: 1 on response tokens [B, R].
        quantile: in [0, 1]; 0 keeps every token, 1 only the largest.
    """
    present, size = mask.bool(), reward.abs()
    last = present.sum(dim=-1, keepdim=True).double() - 1
    index = (quantile * last - ROUNDING).ceil().clamp(min=0).long()
    ranked = size.masked_fill(~present, float("inf")).sort(dim=-1).values
    return present & (size >= ranked.gather(-1, index))


def depth_window(position: Tensor, mask: Tensor, first: int, last: int | None) -> Tensor:
    """Tokens at positions `first .. last` of their response, both included; `last` None: no limit. bool [B, R]."""
    inside = mask.bool() & (position >= first)
    return inside if last is None else inside & (position <= last)


def truncated_mask(truncation: Truncation, truncated: Tensor, mask: Tensor, tail_tokens: int) -> Tensor:
    """Tokens that distillation may use under a policy for truncated rollouts, bool [B, R] (credit/README.md 3).

    keep: all tokens. mask, drop: no token of a truncated rollout. mask_tail: no token in a truncated rollout's last
    `tail_tokens` positions, counted back from its last unmasked token.

    Args:
        truncation: the policy for truncated rollouts.
        truncated: bool [B].
        mask: 1 on response tokens [B, R].
        tail_tokens: length of the tail.
    """
    present = mask.bool()
    if truncation is Truncation.keep:
        return present
    if truncation is not Truncation.mask_tail:
        return present & ~truncated.bool()[:, None]
    position = torch.arange(mask.shape[1], device=mask.device)
    length = (present * (position + 1)).amax(dim=-1, keepdim=True)
    outside_tail = position < length - tail_tokens
    return present & (outside_tail | ~truncated.bool()[:, None])
