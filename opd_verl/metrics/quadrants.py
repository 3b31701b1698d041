"""Quadrants of reward x entropy, and the force of destructive and corrective tokens (Capacity 5.3, tables 4 and 5).

Shapes: B rollouts, R response tokens. r_t and entropies in nats, detached. Every measurement is pooled over tokens.
"""

import torch
from torch import Tensor

from opd_verl.metrics.ratio import Ratio, undefined
from opd_verl.metrics.thresholds import LOW_ENTROPY

QUADRANTS = 5
"""Q1 to Q4, and number 0 for tokens with r_t = 0."""


def quadrant(reward: Tensor, student_entropy: Tensor, low_entropy: float = LOW_ENTROPY) -> Tensor:
    """The quadrant of each token, int64 [B, R], 1 to 4; 0 where r_t is exactly 0 (Capacity table 5).

    Q1: r_t > 0, committed. Q2: r_t > 0, forking: useful distillation. Q3: r_t < 0, committed: forced correction.
    Q4: r_t < 0, forking. Committed: student entropy below `low_entropy` nats.
    """
    forking = (student_entropy >= low_entropy).long()
    return (reward > 0).long() * (1 + forking) + (reward < 0).long() * (3 + forking)


def quadrant_sums(reward: Tensor, student_entropy: Tensor, mask: Tensor, low_entropy: float) -> tuple[Tensor, Tensor]:
    """Number of tokens and `sum |r_t|` in the quadrants 0 to 4 of each rollout, both float64 [B, 5]."""
    present = mask.bool()
    row = torch.arange(len(mask))[:, None].expand_as(mask)[present]
    place = row * QUADRANTS + quadrant(reward, student_entropy, low_entropy)[present]
    size = reward[present].abs().double()
    places = QUADRANTS * len(mask)
    sums = (torch.bincount(place, weight, minlength=places) for weight in (torch.ones_like(size), size))
    tokens, force = (cells.view(-1, QUADRANTS) for cells in sums)
    return tokens, force


def quadrant_shares(tokens: Tensor, force: Tensor) -> dict[str, Ratio]:
    """`q1_mass` to `q4_mass`, shares of all tokens; `q1_force` to `q4_force`, mass times mean `|r_t|`, nats.

    Args:
        tokens: number of tokens [B, 5] (`quadrant_sums`).
        force: `sum |r_t|` [B, 5], nats.
    """
    total, shares = tokens.sum(-1), {}
    for number in range(1, QUADRANTS):
        shares[f"q{number}_mass"] = Ratio(tokens[:, number], total)
        shares[f"q{number}_force"] = Ratio(force[:, number], total)
    return shares


def q3_split(tokens: Tensor, force: Tensor, correct: Tensor) -> dict[str, Ratio]:
    """Q3 by the correctness of the rollout: mass and mean `|r_t|` of each side, and Dest:Corr.

    Q3 tokens of correct rollouts are destructive, Q3 tokens of incorrect rollouts are corrective. `destructive_mass`
    and `corrective_mass` are shares of all tokens; `destructive_reward` and `corrective_reward` are mean `|r_t|`, nats.
    `dest_corr` is `sum |r_t|` over destructive tokens / `sum |r_t|` over corrective tokens; above 1 it predicts
    regression. It is undefined where no rollout is correct, none is incorrect, or no token is corrective.

    Args:
        tokens: number of tokens [B, 5] (`quadrant_sums`).
        force: `sum |r_t|` [B, 5], nats.
        correct: whether the rollout is correct, bool [B].
    """
    total, split = tokens.sum(-1), {}
    for side, belongs in (("destructive", correct.double()), ("corrective", 1 - correct.double())):
        split[f"{side}_mass"] = Ratio(tokens[:, 3] * belongs, total)
        split[f"{side}_reward"] = Ratio(force[:, 3] * belongs, tokens[:, 3] * belongs)
    return split | {"dest_corr": force_ratio(split["destructive_reward"], split["corrective_reward"], correct)}


def force_ratio(destructive: Ratio, corrective: Ratio, correct: Tensor) -> Ratio:
    """Dest:Corr from both sides' mean rewards, whose numerators are `sum |r_t|` of each rollout [B]."""
    if bool(correct.all()) or not bool(correct.any()):
        return undefined(correct)
    return Ratio(destructive.numerator, corrective.numerator)


def dest_corr(
    destructive_mass: float, destructive_reward: float, corrective_mass: float, corrective_reward: float
) -> float:
    """Dest:Corr from the columns of Capacity's table 4: masses (any unit) times mean `|r_t|`."""
    return destructive_mass * destructive_reward / (corrective_mass * corrective_reward)
