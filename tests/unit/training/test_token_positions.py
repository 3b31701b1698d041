"""Index arithmetic of packed and padded batches against loops over single tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_verl.training.token_positions import jagged, packed_positions, response_positions

PAIRS = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=7)  # (prompt, response)


def predicting(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(sequence, column) of the logit that predicts each response token: the column before the token's own."""
    return [(b, prompt + t - 1) for b, (prompt, response) in enumerate(pairs) for t in range(response)]


@settings(deadline=None)
@given(PAIRS)
def test_response_positions(pairs: list[tuple[int, int]]) -> None:
    prompts, responses = torch.tensor(pairs).T
    rows, columns = response_positions(prompts + responses, responses)
    assert rows.dtype == columns.dtype == torch.int64
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == predicting(pairs)


@settings(deadline=None)
@given(PAIRS)
def test_packed_positions(pairs: list[tuple[int, int]]) -> None:
    lengths = [prompt + response for prompt, response in pairs]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packed = [(b, column) for b, length in enumerate(lengths) for column in range(length)]
    positions = packed_positions(offsets, torch.tensor([response for _, response in pairs]))
    assert positions.dtype == torch.int64
    assert [packed[position] for position in positions.tolist()] == predicting(pairs)


@settings(deadline=None)
@given(PAIRS)
def test_both_layouts_pick_the_same_logits(pairs: list[tuple[int, int]]) -> None:
    """A value that names its own (sequence, column), packed and padded."""
    prompts, responses = torch.tensor(pairs).T
    lengths = prompts + responses
    rows = [100 * b + torch.arange(int(length)) for b, length in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    picked = nested.values()[packed_positions(nested.offsets(), responses)]
    assert torch.equal(picked, padded[response_positions(lengths, responses)])
    assert (picked >= 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.sampled_from([(), (3,)]))
def test_jagged(lengths: list[int], width: tuple[int, ...]) -> None:
    values = torch.randn(sum(lengths), *width, requires_grad=True)
    nested = jagged(values, torch.tensor(lengths))
    assert nested.is_nested and nested.layout == torch.jagged and nested.is_contiguous()
    start = 0
    for row, length in zip(nested.unbind(), lengths, strict=True):
        assert torch.equal(row, values[start : start + length])
        start += length
    assert torch.equal(nested.values(), values)
    weights = torch.arange(values.numel(), dtype=values.dtype).view_as(values)
    (nested.values() * weights).sum().backward()
    assert torch.equal(values.grad, weights)


def test_lengths_must_add_up() -> None:
    with pytest.raises(RuntimeError):
        jagged(torch.zeros(5), torch.tensor([2, 2]))
