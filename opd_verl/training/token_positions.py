"""Positions of response tokens in verl's packed and padded batches. Pure index arithmetic."""

from typing import Protocol, cast

import torch
from torch import Tensor


class Jagged(Protocol):
    """A nested tensor with the jagged layout: torch's type stubs give `Tensor` no `offsets`."""

    def offsets(self) -> Tensor:
        """See the function `offsets`."""
        ...


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
    # Index of each token within its own response: the running index minus the tokens of all earlier rows.
    within = torch.arange(int(ends[-1]), device=ends.device) - (ends - response_lengths)[rows]
    return rows, (sequence_lengths - response_lengths - 1)[rows] + within


def packed_positions(sequence_offsets: Tensor, response_lengths: Tensor) -> Tensor:
    """`response_positions` as indices of a packed [sum L, ...] layout with sequence offsets [B + 1]: int64 [sum R]."""
    rows, columns = response_positions(sequence_offsets.diff(), response_lengths)
    return sequence_offsets[:-1][rows] + columns


def jagged(values: Tensor, lengths: Tensor) -> Tensor:
    """A jagged nested tensor of `values` [sum R, ...] split by `lengths` [B]; keeps the gradient."""
    return torch.nested.as_nested_tensor(list(values.split(lengths.tolist())), layout=torch.jagged)


def offsets(nested: Tensor) -> Tensor:
    """Start of each row of a jagged nested tensor in its `values()`, and the end of the last row: int64 [B + 1]."""
    return cast(Jagged, nested).offsets()


def row_lengths(nested: Tensor) -> Tensor:
    """Lengths [B] of the rows of a jagged nested tensor."""
    return offsets(nested).diff()
