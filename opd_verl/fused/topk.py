"""The k largest of a long row by the maxima of its blocks: one quick pass, not a selection over the whole row."""

import torch
from torch import Tensor

BLOCK = 128
"""Ids per block; k blocks of this size hold every one of the k largest."""


def block_topk(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `values.topk(k)` along the last dimension: (values [N, k] descending, ids int64 [N, k]).

    The k largest lie within the k blocks whose maxima are largest: were one of them in another block, then k blocks
    would each hold something larger. What does not fill a block is searched beside them. Equal values may come in
    another order than torch's.
    """
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
