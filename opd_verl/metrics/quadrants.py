"""Reward x entropy quadrants and the force of destructive and corrective tokens (Capacity 5.3, tables 4 and 5).

Shapes: B rollouts, R response tokens. r_t and entropies in nats, detached. All pooled over tokens.
"""

import torch
from torch import Tensor

from opd_verl.metrics.ratio import Ratio, undefined
from opd_verl.metrics.thresholds import LOW_ENTROPY

QUADRANTS = 5
"""Four, and those tokens that nothing pulls."""


def quadrant(reward: Tensor, student_entropy: Tensor, low_entropy: float = LOW_ENTROPY) -> Tensor:
    """1 to 4 for each token, int64 [B, R] (Capacity table 5).

    Q1: r_t > 0, committed. Q2: r_t > 0, forking: useful distillation. Q3: r_t < 0, committed: forced correction.
    Q4: r_t < 0, forking. 0: r_t is 0 to the bit, nothing is pulled anywhere.
    """
    forking = (student_entropy >= low_entropy).long()
    return (reward > 0).long() * (1 + forking) + (reward < 0).long() * (3 + forking)


def quadrant_sums(reward: Tensor, student_entropy: Tensor, mask: Tensor, low_entropy: float) -> tuple[Tensor, Tensor]:
    """Tokens and `sum |r_t|` of each rollout in quadrants 0 to 4, both float64 [B, 5]."""
    present = mask.bool()
    row = torch.arange(len(mask))[:, None].expand_as(mask)[present]
    place = row * QUADRANTS + quadrant(reward, student_entropy, low_entropy)[present]
    size, cells = reward[present].abs().double(), QUADRANTS * len(mask)
    sums = (torch.bincount(place, weight, minlength=cells) for weight in (torch.ones_like(size), size))
    tokens, force = (one.view(-1, QUADRANTS) for one in sums)
    return tokens, force


def quadrant_shares(tokens: Tensor, force: Tensor) -> dict[str, Ratio]:
    """`q1_mass` to `q4_mass`: shares of all tokens. `q1_force` to `q4_force`: mass times mean `|r_t|` of the quadrant's
    tokens, nats. Arguments: `quadrant_sums`."""
    total, found = tokens.sum(-1), {}
    for number in range(1, QUADRANTS):
        found[f"q{number}_mass"] = Ratio(tokens[:, number], total)
        found[f"q{number}_force"] = Ratio(force[:, number], total)
    return found


def q3_split(tokens: Tensor, force: Tensor, correct: Tensor) -> dict[str, Ratio]:
    """Q3 by the rollout's correctness: `destructive_mass`, `_reward` (mean `|r_t|`), `corrective_*`, `dest_corr`.

    Dest:Corr is force over force, `sum |r_t|` over destructive tokens / `sum |r_t|` over corrective tokens; above 1 it
    predicts regression. Undefined where no rollout is correct, none is incorrect, or nothing is corrective.

    Args:
        tokens, force: `quadrant_sums`.
        correct: bool [B].
    """
    total, found = tokens.sum(-1), {}
    for side, whose in (("destructive", correct.double()), ("corrective", 1 - correct.double())):
        found[f"{side}_mass"] = Ratio(tokens[:, 3] * whose, total)
        found[f"{side}_reward"] = Ratio(force[:, 3] * whose, tokens[:, 3] * whose)
    return found | {"dest_corr": force_ratio(found["destructive_reward"], found["corrective_reward"], correct)}


def force_ratio(destructive: Ratio, corrective: Ratio, correct: Tensor) -> Ratio:
    """Dest:Corr of the two sides' `sum |r_t|` per rollout [B]."""
    if bool(correct.all()) or not bool(correct.any()):
        return undefined(correct)
    return Ratio(destructive.numerator, corrective.numerator)


def dest_corr(
    destructive_mass: float, destructive_reward: float, corrective_mass: float, corrective_reward: float
) -> float:
    """Dest:Corr from the columns of Capacity's table 4: masses (any unit) times mean `|r_t|`."""
    return destructive_mass * destructive_reward / (corrective_mass * corrective_reward)
