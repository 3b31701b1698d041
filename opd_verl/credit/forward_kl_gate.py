"""The gate of the extra forward KL (objectives/README.md 5, EOPD eq. 9 and its section 5.6)."""

import torch
from torch import Tensor

from opd_verl.objectives.names import Placement


def forward_kl_gate(
    placement: Placement, teacher_entropy: Tensor, mask: Tensor, tau: float, share: float, seed: int
) -> Tensor:
    """1 where the forward KL is added to the objective, else 0 [B, R] float32.

    none: nowhere. full: everywhere. gated: `1[H_t^q > tau]`. random: `max(1, floor(share n))` of a rollout's n tokens.

    Args:
        placement: one of the four above.
        teacher_entropy: H_t^q [B, R] of the whole vocabulary, nats; read by `gated` alone, detached.
        mask: 1 on response tokens [B, R], else 0; the gate is 0 there.
        tau: threshold of `gated`, nats.
        share: share of a rollout's tokens under `random`, in (0, 1].
        seed: seed of `random`. The choice depends on the seed, on the rollout's row and on its tokens; padding and
            other rollouts do not change it.
    """
    present = mask.bool()
    if placement is Placement.none:
        return torch.zeros_like(present, dtype=torch.float32)
    if placement is Placement.gated:
        return (present & (teacher_entropy > tau)).float()
    if placement is Placement.random:
        return random_positions(present, share, seed).float()
    return present.float()


def random_positions(present: Tensor, share: float, seed: int) -> Tensor:
    """`max(1, floor(share n))` of the n positions of each row of `present` (bool [B, R]) at random, bool [B, R]."""
    # A seed for each row, drawn on the CPU: the choice is the same on every device, and longer rows shift no other row.
    seeds = torch.randint(2**62, (len(present),), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = torch.zeros_like(present)
    for row, row_seed in enumerate(seeds):
        positions = present[row].nonzero().squeeze(-1)
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(row_seed))
        count = max(1, int(share * len(positions) + 1e-9))  # 0.29 * 100 is 28.999999999999996
        chosen[row, positions[order[:count].to(positions.device)]] = True
    return chosen
