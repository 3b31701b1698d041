"""The gradient of a divergence over the whole vocabulary, formed from one chunk's logits of both sides.

Shapes: N rows in all, C rows of the chunk, B of a block, V ids, G the teacher's hidden size. Nats.
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
    """dz = w d D / dz / temperature, closed form (`slope_in_place`)."""

    ids_NM: Tensor
    teacher_hidden_NG: Tensor
    teacher_head: LMHead
    teacher_space: Workspace
    divergence: Divergence
    beta: float
    weights_N: Tensor
    temperature_N: Tensor | None

    def __call__(self, space: Workspace, logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        ids_CM = self.ids_NM[chunk]
        log_p_CM = torch.empty(ids_CM.shape, dtype=torch.float32, device=logits_CV.device)
        losses_C = torch.empty(len(ids_CM), dtype=torch.float32, device=logits_CV.device)
        teacher_CV = self.teacher_space.logits(self.teacher_hidden_NG[chunk])
        for block in parts(len(logits_CV), space.block):
            heat_B = None if self.temperature_N is None else self.temperature_N[chunk][block]
            scaled_BV, p_BV, lse_B = space.softmax(logits_CV[block], heat_B)
            log_p_BV = scaled_BV.sub_(lse_B[:, None])
            log_p_CM[block] = log_p_BV.gather(-1, ids_CM[block])
            teacher_BV = self.teacher_head.finish(self.teacher_space.load(teacher_CV[block]))
            q_BV, teacher_lse_B = self.teacher_space.normalise(teacher_BV)
            log_q_BV = teacher_BV.sub_(teacher_lse_B[:, None])
            losses_C[block] = slope_in_place(p_BV, log_p_BV, q_BV, log_q_BV, self.divergence, self.beta)
            weight_B = self.weights_N[chunk][block]
            logits_CV[block] = p_BV.mul_((weight_B if heat_B is None else weight_B / heat_B)[:, None])
        return losses_C, log_p_CM, ids_CM.new_empty(len(ids_CM), 0)


def slope_in_place(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """`opd_verl.objectives.divergence.full_slope`: D [B], its gradient left in `p`; the other three are overwritten.

    Sums are torch's pairwise ones (a dot product's error is 1e-4 over 150,000 ids), and KLs are divided by sum p, which
    rounding leaves 1e-6 away from 1: without, each id's gradient would be off by that times the KL.
    """
    if divergence is Divergence.forward:
        p.sub_(q)
        return log_q.sub_(log_p).mul_(q).sum(-1)
    if divergence is Divergence.reverse:
        total = p.sum(-1)
        kl = torch.mul(p, log_p.sub_(log_q), out=q).sum(-1) / total
        p.mul_(log_p.sub_(kl[:, None]))
        return kl
    log_m, total = log_mixture(log_p, log_q, beta), p.sum(-1)
    teachers = log_q.sub_(log_m).mul_(q).sum(-1)
    kl = torch.mul(p, log_p.sub_(log_m), out=q).sum(-1) / total
    p.mul_(log_p.sub_(kl[:, None])).mul_(1.0 - beta)
    return beta * teachers + (1.0 - beta) * kl
