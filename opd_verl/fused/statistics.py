"""Next-token statistics from last hidden states, without gradient: for the teacher and for the log-prob pass.

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
    """Statistics of N next-token distributions, nats."""

    logsumexp: Tensor
    """log sum_v exp(z_v), float32 [N]: log-probs at further ids then need no pass over the vocabulary."""
    log_p: Tensor
    """Log-probs at the ids asked for, float32 [N, M]."""
    entropy: Tensor
    """Entropy over all V ids, float32 [N]."""
    topk_ids: Tensor
    """The K most likely ids, int32 [N, K], descending; K may be 0."""
    topk_log_p: Tensor
    """Log-probs of `topk_ids`, float32 [N, K]."""


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
        ids_NM: ids whose log-probs are returned.
        topk: how many of the most likely ids to return.
        temperature_N: divides each row's logits, on top of the head's; None: 1.
        rows: rows of logits that exist at one time; None: a number that suits the device.
    """
    total, device = len(hidden_NH), hidden_NH.device
    ids_NM = ids_NM.long()
    space = Workspace(head.weight, head.bias, ChunkSizes.of(head.weight, rows), total)
    results = RowStatistics(
        logsumexp=torch.empty(total, device=device),
        log_p=torch.empty(total, ids_NM.shape[1], device=device),
        entropy=torch.empty(total, device=device),
        topk_ids=torch.empty(total, topk, dtype=torch.int32, device=device),
        topk_log_p=torch.empty(total, topk, device=device),
    )
    for chunk in parts(total, space.rows):
        logits_CV = space.logits(hidden_NH[chunk])
        for block in parts(len(logits_CV), space.block):
            at = within(chunk, block)
            scaled_BV = head.finish(space.load(logits_CV[block]))
            if temperature_N is not None:
                scaled_BV.div_(temperature_N[at, None])
            probs_BV, lse_B = space.normalise(scaled_BV)
            top_BK, top_ids_BK = block_topk(scaled_BV, topk)
            results.logsumexp[at], results.topk_ids[at] = lse_B, top_ids_BK.int()
            results.log_p[at] = scaled_BV.gather(-1, ids_NM[at]) - lse_B[:, None]
            results.topk_log_p[at] = top_BK - lse_B[:, None]
            results.entropy[at] = entropy(scaled_BV, probs_BV, lse_B)  # last: it overwrites scaled_BV
    return results
