"""The student step's inputs, and the float64 answer that every variant is compared with.

Shapes: T tokens, H hidden size of student and teacher, V ids, K support ids. Nats.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LOGIT_STD = 2.5
ROWS = 64


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
    """One step: student tensors that require grad, the teacher's own hidden states and head, its top-k.

    ids_TK int64 and log_q_TK float32 are the teacher's K most likely ids, descending; tokens_T are random.
    """

    hidden_TH: Tensor
    weight_VH: Tensor
    teacher_hidden_TH: Tensor
    teacher_weight_VH: Tensor
    ids_TK: Tensor
    log_q_TK: Tensor
    tokens_T: Tensor

    def first(self, tokens: int) -> "Inputs":
        """The same models on the first tokens only."""
        return replace(
            self,
            hidden_TH=self.hidden_TH[:tokens].detach().requires_grad_(),
            teacher_hidden_TH=self.teacher_hidden_TH[:tokens],
            ids_TK=self.ids_TK[:tokens],
            log_q_TK=self.log_q_TK[:tokens],
            tokens_T=self.tokens_T[:tokens],
        )


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Random models whose logits have a standard deviation of LOGIT_STD; student and teacher are independent."""
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
    """The definition in float64, on the rounded inputs.

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


def errors(found: Outcome, exact: Outcome) -> tuple[float, float, float]:
    """Relative errors `|x - x64| / |x64|` (2-norms) of loss, hidden gradient and weight gradient."""
    loss, hidden, weight = (
        ((x.double() - x64).norm() / x64.norm()).item() for x, x64 in zip(found, exact, strict=True)
    )
    return loss, hidden, weight
