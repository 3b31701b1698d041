"""Makes the inputs of the student step, and the float64 result that every variant is compared with.

Shapes: T tokens, H hidden size of student and teacher, V ids, K support ids. Nats.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LOGIT_STD = 2.5
"""Standard deviation of the random models' logits, nats."""
ROWS = 64
"""Rows of teacher logits that exist at one time while the inputs are made."""


class Shape(NamedTuple):
    """Sizes of one step."""

    tokens: int
    vocabulary: int
    hidden: int
    k: int


class Outcome(NamedTuple):
    """Mean loss per token (nats) and its gradients by hidden states [T, H] and LM head weight [V, H]."""

    loss: Tensor
    hidden_TH: Tensor
    weight_VH: Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of a step: student tensors that require grad, hidden states and head of the teacher, its top k.

    ids_TK (int64) and log_q_TK (float32) are the teacher's K likeliest ids, likeliest first; tokens_T are random.
    """

    hidden_TH: Tensor
    weight_VH: Tensor
    teacher_hidden_TH: Tensor
    teacher_weight_VH: Tensor
    ids_TK: Tensor
    log_q_TK: Tensor
    tokens_T: Tensor

    def first(self, tokens: int) -> "Inputs":
        """Returns the inputs with the first `tokens` tokens alone."""
        return replace(
            self,
            hidden_TH=self.hidden_TH[:tokens].detach().requires_grad_(),
            teacher_hidden_TH=self.teacher_hidden_TH[:tokens],
            ids_TK=self.ids_TK[:tokens],
            log_q_TK=self.log_q_TK[:tokens],
            tokens_T=self.tokens_T[:tokens],
        )


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Makes independent random models whose logits have a standard deviation of LOGIT_STD."""
    random = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, std: float) -> Tensor:
        return (torch.randn(rows, shape.hidden, generator=random, device=device) * std).to(dtype)

    hidden_TH, teacher_hidden_TH = normal(shape.tokens, 1.0), normal(shape.tokens, 1.0)
    weight_VH, teacher_weight_VH = (normal(shape.vocabulary, LOGIT_STD * shape.hidden**-0.5) for _ in range(2))
    tops = [
        (part_RH @ teacher_weight_VH.t()).float().log_softmax(-1).topk(shape.k)
        for part_RH in teacher_hidden_TH.split(ROWS)
    ]
    return Inputs(
        hidden_TH=hidden_TH.requires_grad_(),
        weight_VH=weight_VH.requires_grad_(),
        teacher_hidden_TH=teacher_hidden_TH,
        teacher_weight_VH=teacher_weight_VH,
        ids_TK=torch.cat([top.indices for top in tops]),
        log_q_TK=torch.cat([top.values for top in tops]),
        tokens_T=torch.randint(shape.vocabulary, (shape.tokens,), generator=random, device=device),
    )


def reference(inputs: Inputs, group: str) -> Outcome:
    """Computes the loss by its definition in float64, on the rounded inputs.

    Group A: `mean_t sum_{v in S} q(v) log(q(v) / p(v))`, S the teacher's top-k.
    Group B: `mean_t sum_v p(v) log(p(v) / q(v))`.
    """
    hidden_TH, weight_VH = (x.detach().double().requires_grad_() for x in (inputs.hidden_TH, inputs.weight_VH))
    p_TV = (hidden_TH @ weight_VH.t()).softmax(-1)
    if group == "A":
        q_TK = inputs.log_q_TK.double().exp()
        loss = (q_TK * (q_TK / p_TV.gather(-1, inputs.ids_TK)).log()).sum(-1).mean()
    else:
        q_TV = (inputs.teacher_hidden_TH.double() @ inputs.teacher_weight_VH.double().t()).softmax(-1)
        loss = (p_TV * (p_TV / q_TV).log()).sum(-1).mean()
    return Outcome(loss.detach(), *torch.autograd.grad(loss, (hidden_TH, weight_VH)))


def errors(computed: Outcome, exact: Outcome) -> tuple[float, float, float]:
    """Returns the relative errors `|x - x64| / |x64|` (2-norms) of loss, hidden gradient and weight gradient."""
    loss, hidden, weight = (
        ((x.double() - x64).norm() / x64.norm()).item() for x, x64 in zip(computed, exact, strict=True)
    )
    return loss, hidden, weight
