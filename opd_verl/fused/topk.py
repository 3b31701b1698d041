"""The k largest of a long row by the maxima of its blocks: one quick pass, not a selection over the whole row."""

import torch
from torch import Tensor

BLOCK = 128
"""Ids per block; k blocks of this size hold every one of the k largest."""


def block_topk(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k)` along the last dimension: values [N, k] descending and ids int64 [N, k].

    Ties may come in another order than torch's.
    """
    # The k largest lie within the k blocks of largest maxima: a value in any other block has k larger values, the
    # maxima of these blocks. The ids behind the last whole block are searched too.
    rows, width = values_NV.shape
    blocks = width // BLOCK
    if k >= blocks:
        return values_NV.topk(k, dim=-1)
    head, rest = values_NV[:, : blocks * BLOCK], values_NV[:, blocks * BLOCK :]
    best_NK = head.reshape(rows, blocks, BLOCK).amax(-1).topk(k, dim=-1).indices
    within = torch.arange(BLOCK, device=values_NV.device)
    ids_NC = (best_NK[:, :, None] * BLOCK + within).flatten(1)
    tail_NC = torch.arange(blocks * BLOCK, width, device=values_NV.device).expand(rows, -1)
    candidates_NC = torch.cat([values_NV.gather(-1, ids_NC), rest], dim=-1)
    top = candidates_NC.topk(k, dim=-1)
    return top.values, torch.cat([ids_NC, tail_NC], dim=-1).gather(-1, top.indices)
