"""The gradient of a loss on chosen ids, formed from one chunk's logits.

Shapes: N rows in all, C rows of the chunk, B rows of a block, V ids, M columns, K top-k. Nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.fused.rows import Workspace, parts
from opd_verl.fused.topk import block_topk

TokenLoss = Callable[[Tensor, slice], Tensor]
"""Takes the log-probs [C, M] of a chunk and the slice of its rows; gives the loss of each token [C], differentiable."""


@dataclass(frozen=True, eq=False)
class SupportChunk:
    """Gradient `dz = (scatter(g) - p sum g) / temperature` with `g = w dl / d log p`; a `ChunkLoss`."""

    ids_NM: Tensor
    """Ids whose log-probs the loss reads; the same id may stand in two columns."""
    token_loss: TokenLoss
    weights_N: Tensor
    temperature_N: Tensor | None
    """Divides the logits of each row; None: 1."""
    topk: int
    """How many of the most likely ids are returned."""

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """See `ChunkLoss`."""
        ids_CM = self.ids_NM[chunk]
        log_p_CM = torch.empty(ids_CM.shape, dtype=torch.float32, device=logits_CV.device)
        topk_ids_CK = torch.empty(len(ids_CM), self.topk, dtype=torch.long, device=logits_CV.device)
        for block in parts(len(logits_CV), space.block):
            heat_B = None if self.temperature_N is None else self.temperature_N[chunk][block]
            scaled_BV, probs_BV, lse_B = space.softmax(logits_CV[block], heat_B)
            log_p_CM[block] = scaled_BV.gather(-1, ids_CM[block]) - lse_B[:, None]
            if self.topk:
                topk_ids_CK[block] = block_topk(scaled_BV, self.topk)[1]
            logits_CV[block] = probs_BV  # kept in the head's dtype until the slopes are known
        losses_C, slope_CM = self.slopes(log_p_CM, chunk)
        if self.temperature_N is not None:
            slope_CM = slope_CM / self.temperature_N[chunk, None]
        total_C1 = slope_CM.sum(-1, keepdim=True)
        # At the support's ids the two terms of dz nearly cancel where the student is close to its teacher. There dz is
        # formed in float32 from log p itself, not from the probabilities that were rounded to the head's dtype.
        same_CMM = ids_CM[:, :, None] == ids_CM[:, None, :]
        at_ids_CM = (same_CMM * slope_CM[:, None, :]).sum(-1) - log_p_CM.exp() * total_C1
        # Block by block: a product of mixed dtypes, or a scatter out of place, would copy the whole chunk.
        for block in parts(len(logits_CV), space.block):
            dlogits_BV = space.load(logits_CV[block]).mul_(-total_C1[block])
            logits_CV[block] = dlogits_BV.scatter_(-1, ids_CM[block], at_ids_CM[block])
        return losses_C, log_p_CM, topk_ids_CK

    def slopes(self, log_p_CM: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        """l_t [C] and `w_t d l_t / d log p` [C, M]."""
        # Autograd is off inside a Function's forward pass; a leaf of its own confines the graph to this chunk.
        with torch.enable_grad():
            leaf_CM = log_p_CM.detach().requires_grad_()
            losses_C = self.token_loss(leaf_CM, chunk).float()
            (slope_CM,) = torch.autograd.grad((losses_C * self.weights_N[chunk]).sum(), leaf_CM)
        return losses_C.detach(), slope_CM
