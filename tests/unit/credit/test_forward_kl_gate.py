"""Where EOPD's forward KL applies (objectives/README.md 5)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.credit.forward_kl_gate import forward_kl_gate
from opd_verl.objectives.names import Placement

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def masks(lengths: list[int], width: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def random_gate(mask: Tensor, share: float = 0.2, seed: int = 0) -> Tensor:
    return forward_kl_gate(Placement.random, torch.zeros(mask.shape), mask, 0.8, share, seed)


def test_by_hand() -> None:
    entropy = torch.tensor([[0.9, 0.8, 0.7, 2.0], [0.81, 5.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    expected = {
        Placement.none: [[0.0] * 4] * 2,
        Placement.gated: [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
        Placement.full: [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
    }
    for placement, rows in expected.items():
        for given_mask in (mask, mask.bool(), mask.float()):
            gate = forward_kl_gate(placement, entropy, given_mask, 0.8, 0.2, 0)
            assert gate.dtype == torch.float32 and gate.tolist() == rows


@pytest.mark.parametrize("seed", range(3))
def test_the_limits_of_tau(seed: int) -> None:
    """tau = inf: nothing is added to the sampled-token objective; tau = -inf: `full`."""
    entropy = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed))
    entropy[0, 0] = 0.0
    mask = masks([9, 3, 0, 5], 9)
    gates = [forward_kl_gate(Placement.gated, entropy, mask, tau, 0.2, 0) for tau in (math.inf, -math.inf)]
    assert not gates[0].any()
    assert torch.equal(gates[1], forward_kl_gate(Placement.full, entropy, mask, 0.8, 0.2, 0))


@pytest.mark.parametrize("placement", Placement)
def test_entropy_of_padding_is_not_read(placement: Placement) -> None:
    mask = masks([3, 0], 5)
    entropy = torch.where(mask.bool(), 1.0, math.nan)
    gate = forward_kl_gate(placement, entropy, mask, 0.8, 0.5, 0)
    assert gate.shape == (2, 5) and gate.isfinite().all() and not gate[~mask.bool()].any()


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**31))
def test_random_takes_its_share_of_every_rollout(lengths: list[int], twentieths: int, seed: int) -> None:
    """Exactly max(1, floor(share n)) tokens, whatever the number of padding columns."""
    width = max(lengths)
    mask, share = masks(lengths, width), twentieths / 20
    gate = random_gate(mask, share, seed)
    assert torch.equal(gate, gate * mask)
    assert gate.sum(-1).tolist() == [max(1, math.floor(share * n)) if n else 0 for n in lengths]
    wider = random_gate(masks(lengths, width + 7), share, seed)
    assert torch.equal(wider[:, :width], gate) and not wider[:, width:].any()


def test_random_counts_tokens_inside_holes() -> None:
    """The choice is among a rollout's tokens: columns that are not tokens, wherever they are, do not change it."""
    dense = random_gate(torch.ones(3, 20, dtype=torch.long))
    mask = torch.zeros(3, 41, dtype=torch.long)
    mask[:, 1::2] = 1
    assert torch.equal(random_gate(mask)[:, 1::2], dense)


def test_random_does_not_depend_on_the_other_rollouts() -> None:
    gates = [random_gate(masks(lengths, 30)) for lengths in ([30, 25, 12], [4, 25, 30, 7, 9])]
    assert torch.equal(gates[0][1], gates[1][1])


def test_random_is_seeded_and_spread() -> None:
    """One seed repeats; seeds and rows differ; every position is chosen about equally often."""
    mask = torch.ones(2000, 20, dtype=torch.long)
    gate = random_gate(mask, seed=5)
    state = torch.get_rng_state()
    assert torch.equal(gate, random_gate(mask, seed=5)) and not torch.equal(gate, random_gate(mask, seed=6))
    assert torch.equal(state, torch.get_rng_state())
    assert len(gate.unique(dim=0)) > 1000
    share = gate.mean(0)
    assert share.min() > 0.16 and share.max() < 0.24  # 0.2, standard deviation 0.009
