"""Next-token statistics from last hidden states, without gradient: the teacher's scoring and the log-prob pass.

Shapes: N rows (positions that predict a response token), H hidden size, V ids, M chosen ids, K top-k. Nats, float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.rows import ChunkSizes, Workspace, entropy, parts, within
from opd_verl.fused.topk import block_topk


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Of N rows: logsumexp, entropy f32 [N]; log_p f32 [N, M] at the ids asked for; topk_ids i32 and topk_log_p f32
    [N, K], descending (K may be 0)."""

    logsumexp: Tensor
    log_p: Tensor
    entropy: Tensor
    topk_ids: Tensor
    topk_log_p: Tensor


@torch.no_grad()
def row_statistics(
    head: LMHead,
    hidden_NH: Tensor,
    ids_NM: Tensor,
    topk: int = 0,
    temperature_N: Tensor | None = None,
    rows: int | None = None,
) -> RowStatistics:
    """Statistics of the next-token distributions of all rows; at most [rows, V] logits alive at a time.

    Args:
        head: the LM head, its own temperature included.
        hidden_NH: last hidden states in the head's dtype.
        ids_NM: ids whose log-probs are wanted.
        topk: how many of the most likely ids to return.
        temperature_N: divides each row's logits, on top of the head's; None: 1.
        rows: rows of logits that exist at one time; None: what suits the device.
    """
    total, device = len(hidden_NH), hidden_NH.device
    ids_NM = ids_NM.long()
    space = Workspace(head.weight, head.bias, ChunkSizes.of(head.weight, rows), total)
    floats = {"logsumexp": (), "log_p": (ids_NM.shape[1],), "entropy": (), "topk_log_p": (topk,)}
    found = {name: torch.empty(total, *shape, device=device) for name, shape in floats.items()}
    topk_ids_NK = torch.empty(total, topk, dtype=torch.int32, device=device)
    for chunk in parts(total, space.rows):
        logits_CV = space.logits(hidden_NH[chunk])
        for block in parts(len(logits_CV), space.block):
            at = within(chunk, block)
            scaled_BV = head.finish(space.load(logits_CV[block]))
            if temperature_N is not None:
                scaled_BV.div_(temperature_N[at, None])
            probs_BV, lse_B = space.normalise(scaled_BV)
            top_BK, top_ids_BK = block_topk(scaled_BV, topk)
            found["logsumexp"][at], topk_ids_NK[at] = lse_B, top_ids_BK.int()
            found["log_p"][at] = scaled_BV.gather(-1, ids_NM[at]) - lse_B[:, None]
            found["topk_log_p"][at] = top_BK - lse_B[:, None]
            found["entropy"][at] = entropy(scaled_BV, probs_BV, lse_B)
    return RowStatistics(topk_ids=topk_ids_NK, **found)
