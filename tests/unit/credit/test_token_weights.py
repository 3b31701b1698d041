"""Token weights against loops over tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.credit.token_weights import correctness_weight, depth_decay

MASKS = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=5)
)


@given(MASKS, st.floats(0, 4, width=32), st.floats(0, 4, width=32), st.data())
def test_correctness_weight(mask: list[list[int]], right: float, wrong: float, data: st.DataObject) -> None:
    correct = [data.draw(st.booleans()) for _ in mask]
    weights = correctness_weight(torch.tensor(correct), torch.tensor(mask), right, wrong)
    assert weights.dtype == torch.float32
    expected = [
        [(right if is_correct else wrong) * m for m in row] for is_correct, row in zip(correct, mask, strict=True)
    ]
    assert weights.tolist() == expected


@given(MASKS, st.floats(0.5, 9000))
def test_depth_decay(mask: list[list[int]], half_life: float) -> None:
    decay = depth_decay(torch.arange(len(mask[0])).expand(len(mask), -1), torch.tensor(mask), half_life)
    expected = [[0.5 ** (position / half_life) * m for position, m in enumerate(row)] for row in mask]
    assert decay.dtype == torch.float32
    torch.testing.assert_close(decay.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-12)


def test_depth_decay_halves_at_every_half_life() -> None:
    decay = depth_decay(torch.arange(8193)[None], torch.ones(1, 8193, dtype=torch.int64), 4096.0)
    assert decay[0, [0, 4096, 8192]].tolist() == [1.0, 0.5, 0.25]
    assert (decay.diff() < 0).all()
