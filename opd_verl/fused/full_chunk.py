"""The gradient of a divergence over the whole vocabulary, formed from one chunk's logits of both sides.

Shapes: N rows in all, C rows of the chunk, B rows of a block, V ids, M columns, G the teacher's hidden size. Nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.rows import Workspace, parts
from opd_verl.objectives.divergence import log_mixture
from opd_verl.objectives.names import Divergence


@dataclass(frozen=True, eq=False)
class FullChunk:
    """Gradient `w_t dD_t / dz` of the student's logits z in closed form (`slope_in_place`); a `ChunkLoss`."""

    ids_NM: Tensor
    """Ids whose log-probs are returned with the losses."""
    teacher_hidden_NG: Tensor
    teacher_head: LMHead
    teacher_space: Workspace
    """Buffers for the teacher's logits: both sides' logits of a chunk exist at the same time."""
    divergence: Divergence
    beta: float
    weights_N: Tensor
    temperature_N: Tensor | None
    """Divides the student's logits of each row; None: 1. `teacher_head` has the teacher's temperature."""

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """See `ChunkLoss`."""
        ids_CM = self.ids_NM[chunk]
        log_p_CM = torch.empty(ids_CM.shape, dtype=torch.float32, device=logits_CV.device)
        losses_C = torch.empty(len(ids_CM), dtype=torch.float32, device=logits_CV.device)
        teacher_CV = self.teacher_space.logits(self.teacher_hidden_NG[chunk])
        for block in parts(len(logits_CV), space.block):
            heat_B = None if self.temperature_N is None else self.temperature_N[chunk][block]
            # Everything below overwrites the buffers of the two workspaces: no new [B, V] tensor.
            scaled_BV, p_BV, lse_B = space.softmax(logits_CV[block], heat_B)
            log_p_BV = scaled_BV.sub_(lse_B[:, None])
            log_p_CM[block] = log_p_BV.gather(-1, ids_CM[block])
            teacher_BV = self.teacher_head.finish(self.teacher_space.load(teacher_CV[block]))
            q_BV, teacher_lse_B = self.teacher_space.normalise(teacher_BV)
            log_q_BV = teacher_BV.sub_(teacher_lse_B[:, None])
            losses_C[block] = slope_in_place(p_BV, log_p_BV, q_BV, log_q_BV, self.divergence, self.beta)
            weight_B = self.weights_N[chunk][block]
            # d(z / temperature) / dz = 1 / temperature; the store rounds the gradient to the head's dtype.
            logits_CV[block] = p_BV.mul_((weight_B if heat_B is None else weight_B / heat_B)[:, None])
        return losses_C, log_p_CM, ids_CM.new_empty(len(ids_CM), 0)


def slope_in_place(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """`opd_verl.objectives.divergence.full_slope` without new tensors: returns D [B], leaves dD / dz in `p`.

    `log_p`, `q` and `log_q` are overwritten. All [B, V] float32, nats.
    """
    # `sum` adds in pairs; a dot product would be off by 1e-4 over 150,000 ids. Rounding leaves sum p about 1e-6 away
    # from 1; each KL is divided by sum p, or each id's gradient would be off by 1e-6 times the KL.
    if divergence is Divergence.forward:
        p.sub_(q)  # d KL(q || p) / dz = p - q
        return log_q.sub_(log_p).mul_(q).sum(-1)
    if divergence is Divergence.reverse:
        total = p.sum(-1)
        kl = torch.mul(p, log_p.sub_(log_q), out=q).sum(-1) / total
        p.mul_(log_p.sub_(kl[:, None]))  # d KL(p || q) / dz = p (log p - log q - KL)
        return kl
    log_m, total = log_mixture(log_p, log_q, beta), p.sum(-1)
    teachers = log_q.sub_(log_m).mul_(q).sum(-1)
    kl = torch.mul(p, log_p.sub_(log_m), out=q).sum(-1) / total
    # The mixture's own gradient terms cancel: dJSD / dz = (1 - beta) p (log p - log m - KL(p || m)).
    p.mul_(log_p.sub_(kl[:, None])).mul_(1.0 - beta)
    return beta * teachers + (1.0 - beta) * kl
