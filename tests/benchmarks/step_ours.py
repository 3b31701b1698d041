"""Our variants of the student step, the plain path, and the bare matrix products, which no variant can beat."""

from collections.abc import Callable

import torch
from step_inputs import Inputs, Outcome
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.log_probs import fused_log_probs
from opd_verl.fused.loss import fused_full_divergence, fused_support_loss
from opd_verl.fused.rows import ChunkSizes, HeadWeights, parts
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail

Step = Callable[[], Outcome | None]
"""One forward and backward pass; it returns None where there is no loss to check."""


def differentiated(inputs: Inputs, loss: Tensor) -> Outcome:
    """Differentiates a scalar loss by hidden states and weight."""
    return Outcome(loss.detach(), *torch.autograd.grad(loss, (inputs.hidden_TH, inputs.weight_VH)))


def overlap(ids_TK: Tensor, student_ids_TK: Tensor, log_q_TK: Tensor, log_p_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Computes verl's diagnostics: number of ids in both top k, mean of `-q log(q / p)` over them, both [T]."""
    shared_TK = (ids_TK[:, :, None] == student_ids_TK[:, None, :]).any(-1)
    count_T = shared_TK.sum(-1)
    advantage_TK = log_q_TK.exp() * (log_p_TK - log_q_TK)
    return count_T, (advantage_TK * shared_TK).sum(-1) / count_T.clamp(min=1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns the loss per token of group A."""
    return support_divergence(log_p, log_q, Divergence.forward, Tail.none)


def head_of(inputs: Inputs) -> HeadWeights:
    """Returns the student's whole LM head."""
    return HeadWeights(inputs.weight_VH, None, len(inputs.weight_VH))


def support_fused(inputs: Inputs) -> Step:
    """Group A, with gradients computed within the forward pass."""
    tokens, k = inputs.ids_TK.shape
    weights_T = torch.full((tokens,), 1.0 / tokens, device=inputs.hidden_TH.device)

    def step() -> Outcome:
        fused = fused_support_loss(
            inputs.hidden_TH,
            head_of(inputs),
            inputs.ids_TK,
            lambda log_p_CK, chunk: forward_kl(log_p_CK, inputs.log_q_TK[chunk]),
            weights_T,
            topk=k,
        )
        overlap(inputs.ids_TK, fused.topk_ids, inputs.log_q_TK, fused.log_p)
        return differentiated(inputs, fused.loss)

    return step


def support_recomputing(inputs: Inputs) -> Step:
    """Group A from log-probs that any loss may read: four products; without the student's top k, so no diagnostics."""

    def step() -> Outcome:
        log_p_TK, _ = fused_log_probs(inputs.hidden_TH, head_of(inputs), inputs.ids_TK)
        return differentiated(inputs, forward_kl(log_p_TK, inputs.log_q_TK).mean())

    return step


def support_plain(inputs: Inputs) -> Step:
    """Group A on all logits, by autograd, the softmax in float32."""

    def step() -> Outcome:
        log_p_TV = (inputs.hidden_TH @ inputs.weight_VH.t()).log_softmax(-1, dtype=torch.float32)
        log_p_TK = log_p_TV.gather(-1, inputs.ids_TK)
        student_ids_TK = log_p_TV.detach().topk(inputs.ids_TK.shape[1]).indices
        overlap(inputs.ids_TK, student_ids_TK, inputs.log_q_TK, log_p_TK.detach())
        return differentiated(inputs, forward_kl(log_p_TK, inputs.log_q_TK).mean())

    return step


def full_fused(inputs: Inputs) -> Step:
    """Group B, with gradients computed within the forward pass."""
    tokens = len(inputs.hidden_TH)
    weights_T = torch.full((tokens,), 1.0 / tokens, device=inputs.hidden_TH.device)
    teacher = LMHead(inputs.teacher_weight_VH, None, 1.0, None, 1.0)

    def step() -> Outcome:
        fused = fused_full_divergence(
            inputs.hidden_TH,
            head_of(inputs),
            inputs.teacher_hidden_TH,
            teacher,
            Divergence.reverse,
            weights_T,
            inputs.tokens_T,
        )
        return differentiated(inputs, fused.loss)

    return step


def full_plain(inputs: Inputs) -> Step:
    """Group B on all logits, by autograd, both softmaxes in float32."""

    def step() -> Outcome:
        log_q_TV = (inputs.teacher_hidden_TH @ inputs.teacher_weight_VH.t()).log_softmax(-1, dtype=torch.float32)
        log_p_TV = (inputs.hidden_TH @ inputs.weight_VH.t()).log_softmax(-1, dtype=torch.float32)
        return differentiated(inputs, (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean())

    return step


def products(inputs: Inputs, with_teacher: bool) -> Step:
    """The floor: logits, dH and dW (and the teacher's logits) in our chunks of rows, into buffers made before."""
    hidden_TH, weight_VH = inputs.hidden_TH.detach(), inputs.weight_VH.detach()
    rows = min(ChunkSizes.of(weight_VH).rows, len(hidden_TH))
    logits_CV, teacher_CV = (hidden_TH.new_zeros(rows, len(weight_VH)) for _ in range(2))
    dhidden_TH, dweight_VH = torch.empty_like(hidden_TH), torch.zeros_like(weight_VH)

    def step() -> None:
        for chunk in parts(len(hidden_TH), rows):
            part_CV = torch.mm(hidden_TH[chunk], weight_VH.t(), out=logits_CV[: chunk.stop - chunk.start])
            if with_teacher:
                teacher_part_CH = inputs.teacher_hidden_TH[chunk]
                torch.mm(teacher_part_CH, inputs.teacher_weight_VH.t(), out=teacher_CV[: len(teacher_part_CH)])
            torch.mm(part_CV, weight_VH, out=dhidden_TH[chunk])
            torch.addmm(dweight_VH, part_CV.t(), hidden_TH[chunk], beta=float(chunk.start > 0), out=dweight_VH)

    return step
