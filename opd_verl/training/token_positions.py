"""Where the response tokens lie in verl's packed and padded batches. Pure index arithmetic."""

from typing import Any

import torch
from torch import Tensor


def response_positions(sequence_lengths: Tensor, response_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every logit that predicts a response token, in a padded [B, L, ...] layout.

    The token at column t is predicted at column t - 1, so a response that ends a sequence of length L and has R
    tokens is predicted at columns L - R - 1 ... L - 2.

    Args:
        sequence_lengths: prompt + response [B]; the prompt has at least one token.
        response_lengths: [B].

    Returns:
        rows and columns, int64 [sum R], in order of sequence and token.
    """
    sequences = torch.arange(len(response_lengths), device=response_lengths.device)
    rows = sequences.repeat_interleave(response_lengths)
    ends = response_lengths.cumsum(0)
    within = torch.arange(int(ends[-1]), device=ends.device) - (ends - response_lengths)[rows]
    return rows, (sequence_lengths - response_lengths - 1)[rows] + within


def packed_positions(sequence_offsets: Tensor, response_lengths: Tensor) -> Tensor:
    """The same in a packed [sum L, ...] layout, given the sequences' offsets [B + 1]; int64 [sum R]."""
    rows, columns = response_positions(sequence_offsets.diff(), response_lengths)
    return sequence_offsets[:-1][rows] + columns


def jagged(values: Tensor, lengths: Tensor) -> Tensor:
    """A jagged nested tensor of `values` [sum R, ...] split by `lengths` [B]; keeps the gradient."""
    return torch.nested.as_nested_tensor(list(values.split(lengths.tolist())), layout=torch.jagged)


def row_lengths(nested: Any) -> Tensor:
    """Lengths [B] of the rows of a jagged nested tensor (whose layout torch's type stubs do not know)."""
    return nested.offsets().diff()
