"""Token selection against loops over tokens."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.credit.token_masks import (
    depth_window,
    drop_destructive_q3,
    drop_q3,
    either,
    high_divergence,
    in_q3,
    top_share,
    truncated_mask,
)
from opd_verl.objectives.names import Truncation

SHARES = st.sampled_from(["0", "0.05", "0.2", "0.29", "0.3", "0.57", "0.7", "1"])
"""Shares as a user writes them: floor(share * n) of the decimal number, not of its float."""
CELLS = st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 2.0]), st.booleans())
"""(value, response token?); few values, so that ties are common."""
ROWS = st.integers(1, 12).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1))


def tensors(rows: list[list[tuple[float, bool]]]) -> tuple[Tensor, Tensor]:
    values = torch.tensor([[value for value, _ in row] for row in rows])
    return values, torch.tensor([[int(present) for _, present in row] for row in rows])


def naive_top(row: list[tuple[float, bool]], share: str) -> list[bool]:
    """Takes the best token still left, the earliest of equals, as often as floor(share * n) says, at least once."""
    left = [position for position, (_, present) in enumerate(row) if present]
    kept: set[int] = set()
    for _ in range(min(len(left), max(1, math.floor(Fraction(share) * len(left))))):
        best = left[0]
        for position in left[1:]:
            if row[position][0] > row[best][0]:
                best = position
        left.remove(best)
        kept.add(best)
    return [position in kept for position in range(len(row))]


@given(ROWS, SHARES)
def test_top_share_is_the_naive_choice(rows: list[list[tuple[float, bool]]], share: str) -> None:
    values, mask = tensors(rows)
    mask_found = top_share(values, mask, float(share))
    assert mask_found.dtype == torch.bool
    assert mask_found.tolist() == [naive_top(row, share) for row in rows]


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (100, 20)])
def test_the_count_is_the_floor_and_at_least_one(length: int, expected: int) -> None:
    values = torch.randn(1, length, generator=torch.Generator().manual_seed(length))
    assert top_share(values, torch.ones(1, length), 0.2).sum().item() == expected


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_the_count_of_100_tokens_at_every_share(hundredths: int) -> None:
    """0.29 * 100 and 0.57 * 100 lie below the whole number in float64."""
    assert top_share(torch.zeros(1, 100), torch.ones(1, 100), hundredths / 100).sum().item() == hundredths


def test_counts_are_exact_for_long_rollouts() -> None:
    """A product in float32 would be off by some tokens."""
    length = 100_003
    assert top_share(torch.zeros(1, length), torch.ones(1, length), 0.7).sum().item() == 70_002


def test_ties_are_broken_by_position() -> None:
    mask = torch.ones(3, 40)
    mask[1, :5] = 0
    mask_found = top_share(torch.zeros(3, 40), mask, 0.2)
    assert [row.nonzero().flatten().tolist() for row in mask_found] == [[*range(8)], [*range(5, 12)], [*range(8)]]


def test_masked_values_do_not_matter() -> None:
    values, mask = torch.tensor([[math.inf, 1.0, math.nan, 3.0, 2.0]]), torch.tensor([[0, 1, 0, 1, 1]])
    assert top_share(values, mask, 0.7).tolist() == [[False, False, False, True, True]]
    assert high_divergence(values, mask, 0.5).tolist() == [[False, False, False, True, True]]
    assert drop_q3(values - 9, values, mask, 1.5).tolist() == [[False, False, False, True, True]]


@given(ROWS, st.integers(1, 70), SHARES)
def test_padding_and_other_rollouts_change_nothing(
    rows: list[list[tuple[float, bool]]], padding: int, share: str
) -> None:
    values, mask = tensors(rows)
    wide, wide_mask = (torch.nn.functional.pad(tensor, (0, padding), value=0) for tensor in (values, mask))
    wide[:, values.shape[1] :] = 7.0
    for choose in (top_share, high_divergence):
        alone = choose(values, mask, float(share))
        padded = choose(wide, wide_mask, float(share))
        assert torch.equal(padded[:, : values.shape[1]], alone) and not padded[:, values.shape[1] :].any()
        each = [choose(values[row : row + 1], mask[row : row + 1], float(share)) for row in range(len(values))]
        assert torch.equal(torch.cat(each), alone)


def test_either() -> None:
    student, teacher = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1]])
    kept = either(top_share(student, mask, 0.4), top_share(teacher, mask, 0.4))
    assert kept.tolist() == [[True, True, False, True, True]]
    assert either(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [[True, False]]


def test_quadrants_of_capacity_table_5() -> None:
    """Q1, Q2, Q3, Q4, no reward, and Q4 at the threshold."""
    reward = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0, -0.5]])
    entropy = torch.tensor([[0.1, 0.9, 0.1, 0.9, 0.1, 0.3]])
    assert in_q3(reward, entropy, 0.3).tolist() == [[False, False, True, False, False, False]]
    mask = torch.tensor([[1, 1, 1, 1, 0, 1]])
    assert drop_q3(reward, entropy, mask, 0.3).tolist() == [[True, True, False, True, False, True]]


@given(ROWS, st.data())
def test_destructive_q3_is_q3_of_correct_rollouts(rows: list[list[tuple[float, bool]]], data: st.DataObject) -> None:
    reward, mask = tensors(rows)
    entropies = [[data.draw(st.sampled_from([0.1, 0.3, 0.9])) for _ in row] for row in rows]
    correct = [data.draw(st.booleans()) for _ in rows]
    kept = drop_destructive_q3(reward, torch.tensor(entropies), torch.tensor(correct), mask, 0.3)
    every = drop_q3(reward, torch.tensor(entropies), mask, 0.3)
    for row, cells in enumerate(rows):
        for position, (value, present) in enumerate(cells):
            q3 = value < 0 and entropies[row][position] == 0.1
            assert kept[row, position] == (present and not (q3 and correct[row]))
            assert every[row, position] == (present and not q3)


@given(ROWS, st.sampled_from(["0", "0.1", "0.25", "0.5", "0.7", "0.9", "1"]))
def test_high_divergence_is_at_or_above_the_interpolated_quantile(
    rows: list[list[tuple[float, bool]]], quantile: str
) -> None:
    reward, mask = tensors(rows)
    actual = high_divergence(reward, mask, float(quantile)).tolist()
    for row, kept in zip(rows, actual, strict=True):
        sizes = sorted(Fraction(abs(value)) for value, present in row if present)
        if not sizes:
            assert not any(kept)
            continue
        where = Fraction(quantile) * (len(sizes) - 1)
        low, high = sizes[math.floor(where)], sizes[math.ceil(where)]
        threshold = low + (high - low) * (where - math.floor(where))
        assert kept == [present and abs(value) >= threshold for value, present in row]


def test_high_divergence_agrees_with_torch() -> None:
    reward = torch.randn(3, 1001, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, 1001)
    threshold = reward.abs().double().quantile(0.9, dim=-1, keepdim=True)
    assert torch.equal(high_divergence(reward, mask, 0.9), reward.abs() >= threshold)
    assert high_divergence(reward, mask, 0.9).sum(-1).tolist() == [101] * 3


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_the_token_at_the_quantile_is_kept(hundredths: int) -> None:
    """0.07 * 100 and 0.29 * 100 are not whole numbers in float64; of 101 tokens the quantile is one of them."""
    reward = torch.arange(101.0)[None]
    assert high_divergence(reward, torch.ones(1, 101), hundredths / 100).sum().item() == 101 - hundredths


def test_high_divergence_reads_batches_beyond_the_limit_of_torch_quantile() -> None:
    reward = torch.arange(17_000_000.0).view(17, -1)  # torch.quantile refuses more than 16M elements
    assert high_divergence(reward, torch.ones(17, 1, dtype=torch.bool).expand_as(reward), 1.0).sum().item() == 17


@pytest.mark.parametrize(
    ("first", "last", "kept"), [(0, None, [0, 1, 3, 4]), (1, 3, [1, 3]), (4, 9, [4]), (5, None, []), (0, 0, [0])]
)
def test_depth_window_has_both_ends(first: int, last: int | None, kept: list[int]) -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    window = depth_window(torch.arange(5).expand(1, 5), mask, first, last)
    assert window.dtype == torch.bool and window[0].nonzero().flatten().tolist() == kept


@given(ROWS, st.sampled_from(Truncation), st.integers(1, 14), st.data())
def test_truncated_rollouts(
    rows: list[list[tuple[float, bool]]], truncation: Truncation, tail: int, data: st.DataObject
) -> None:
    _, mask = tensors(rows)
    cut = [data.draw(st.booleans()) for _ in rows]
    kept = truncated_mask(truncation, torch.tensor(cut), mask, tail)
    assert kept.dtype == torch.bool
    for row, cells in enumerate(rows):
        positions = [position for position, (_, present) in enumerate(cells) if present]
        length = positions[-1] + 1 if positions else 0
        limit = (
            {Truncation.keep: length, Truncation.mask_tail: length - tail}.get(truncation, 0) if cut[row] else length
        )
        assert kept[row].nonzero().flatten().tolist() == [position for position in positions if position < limit]


def test_the_tail_is_counted_from_the_end_of_the_response() -> None:
    """Not from the end of the padding; a masked token within the tail counts as a position."""
    mask = torch.tensor([[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    kept = truncated_mask(Truncation.mask_tail, torch.tensor([True, True]), mask, 2)
    assert kept.int().tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
