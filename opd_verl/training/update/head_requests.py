"""What the engine asks of the LM head for one micro-batch, and its answer on the fused and on the plain path.

Shapes: N response tokens of the micro-batch, H hidden size, V ids of the tokenizer, M columns. Nats, float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.log_probs import fused_log_probs
from opd_verl.fused.loss import fused_full_divergence, fused_support_loss
from opd_verl.fused.rows import HeadWeights
from opd_verl.fused.statistics import row_statistics
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Tail
from opd_verl.schema import OPTIONAL_FIELDS, TEACHER_HIDDEN
from opd_verl.training.update.actor_loss import OpdLoss, token_weights


@dataclass(frozen=True, eq=False)
class Update:
    """One micro-batch of the actor update: flat fields [N, ...] and what the loss needs of the student."""

    loss: OpdLoss
    fields: dict[str, Tensor]
    weights: Tensor
    temperature: Tensor | None
    with_entropy: bool
    teacher_head: LMHead | None
    rows: int | None

    @classmethod
    def of(cls, loss: OpdLoss, data: Any, **rest: Any) -> "Update":
        """Reads the fields that the loss's terms name from a micro-batch."""
        names = [*loss.terms.field_names, *([TEACHER_HIDDEN] if loss.terms.full else [])]
        names = [name for name in names if name not in OPTIONAL_FIELDS or name in data]
        fields = {name: data[name].values() for name in names}
        return cls(loss=loss, fields=fields, weights=token_weights(data, loss.config), **rest)

    @property
    def needs_columns(self) -> bool:
        """Whether log-probs at chosen ids take part in the loss, and not a whole distribution alone."""
        return self.loss.needs_log_prob_gradient or self.loss.terms.any or not self.loss.terms.full

    def fused(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """`log_p` and `entropy` of the sampled tokens, values of the exact terms, and `opd_loss` (see `OpdLoss`)."""
        found: dict[str, Tensor] = {}
        if self.loss.terms.full:
            found |= self.fused_full(hidden_NH, head)
        if not self.needs_columns:
            return found
        columns = self.loss.terms.columns(self.fields)
        if self.loss.needs_log_prob_gradient or not self.loss.terms.any:
            log_p, entropy = fused_log_probs(hidden_NH, head, columns, self.temperature, self.with_entropy, self.rows)
            found |= {"log_p": log_p[:, 0]} | ({} if entropy is None else {"entropy": entropy})
            return found | self.loss.terms.losses(log_p, self.fields)
        done = fused_support_loss(
            hidden_NH, head, columns, self.chunk_loss, self.weights, self.temperature, rows=self.rows
        )
        return {"opd_loss": done.loss, "log_p": done.log_p[:, 0], **self.loss.terms.losses(done.log_p, self.fields)}

    def chunk_loss(self, log_p_CM: Tensor, rows: slice) -> Tensor:
        """The sum of the terms for some of the tokens [C]."""
        chunk = {name: value[rows] for name, value in self.fields.items()}
        return torch.stack(list(self.loss.terms.losses(log_p_CM, chunk).values())).sum(0)

    def fused_full(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """The whole vocabulary's divergence."""
        assert self.teacher_head is not None
        objective: Any = self.loss.terms.objective
        done = fused_full_divergence(
            hidden_NH,
            head,
            self.fields[TEACHER_HIDDEN],
            self.teacher_head,
            objective.divergence,
            self.weights * self.loss.terms.coefficient,
            self.fields["responses"],
            objective.beta,
            self.temperature,
            self.rows,
        )
        divergence = self.loss.terms.coefficient * done.token_losses
        return {"opd_loss": done.loss, "log_p": done.log_p[:, 0], "divergence": divergence}

    def plain(self, log_p_NV: Tensor) -> dict[str, Tensor]:
        """The same exact terms from log-probs over the whole vocabulary, by autograd: the reference path."""
        terms, found = self.loss.terms, {}
        if terms.any:
            found |= terms.losses(log_p_NV.gather(-1, terms.columns(self.fields).clamp(min=0)), self.fields)
        if terms.full:
            assert self.teacher_head is not None
            objective: Any = terms.objective
            log_q_NV = self.teacher_head.logits(self.fields[TEACHER_HIDDEN]).log_softmax(-1)
            value = support_divergence(log_p_NV, log_q_NV, objective.divergence, Tail.none, objective.beta)
            found["divergence"] = terms.coefficient * value
        return found


@dataclass(frozen=True, eq=False)
class LogProbPass:
    """One micro-batch of the log-prob pass: no gradient, the student's top-k, and log-probs at the teacher's ids."""

    tokens: Tensor
    teacher_ids: Tensor | None
    topk: int
    temperature: Tensor | None
    rows: int | None

    def fused(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """`log_p`, `entropy`, `topk_ids`, `topk_log_p`, `log_p_at_teacher` of every response token."""
        ids = self.tokens[:, None].long()
        if self.teacher_ids is not None:
            ids = torch.cat([ids, self.teacher_ids.long()], dim=-1)
        bias = None if head.bias is None else head.bias[: head.limit]
        lm_head = LMHead(head.weight[: head.limit], bias, scale=1.0, softcap=None, temperature=1.0)
        done = row_statistics(lm_head, hidden_NH, ids, self.topk, self.temperature, self.rows)
        found = {"log_p": done.log_p[:, 0], "entropy": done.entropy}
        return self.with_topk(found, done.topk_ids, done.topk_log_p, done.log_p[:, 1:])

    def plain(self, log_p_NV: Tensor) -> dict[str, Tensor]:
        """The top-k and the teacher's ids from log-probs over the whole vocabulary."""
        top = log_p_NV.topk(self.topk, dim=-1)
        ids = self.tokens[:, None] if self.teacher_ids is None else self.teacher_ids
        return self.with_topk({}, top.indices.int(), top.values, log_p_NV.gather(-1, ids.long()))

    def with_topk(
        self, found: dict[str, Tensor], topk_ids: Tensor, topk_log_p: Tensor, at_teacher: Tensor
    ) -> dict[str, Tensor]:
        """Adds what was asked for."""
        if self.topk:
            found |= {"student_topk_ids": topk_ids, "student_topk_log_probs": topk_log_p}
        if self.teacher_ids is not None:
            found["student_log_probs_at_teacher_topk"] = at_teacher
        return found


HeadRequest = Update | LogProbPass


class HeadSwitch:
    """Stands in for the LM head's `forward`: answers the open request from hidden states, or gives logits as before.

    The answer leaves the model as its `logits`, a tuple of tensors, so that FSDP sees every tensor that a gradient
    comes back through.
    """

    def __init__(self, layer: torch.nn.Linear, limit: int) -> None:
        self.layer, self.limit = layer, limit
        self.original: Callable[[Tensor], Tensor] = layer.forward
        self.request: HeadRequest | None = None
        self.select: Callable[[Tensor], Tensor] = lambda hidden: hidden
        self.names: tuple[str, ...] = ()
        layer.forward = self.forward  # type: ignore[method-assign]

    def forward(self, hidden: Tensor) -> Any:
        """`hidden` [1, T, H] packed or [B, L, H] padded; logits, or the request's answers."""
        if self.request is None:
            return self.original(hidden)
        rows_NH = self.select(hidden).to(self.layer.weight.dtype)
        head = HeadWeights(self.layer.weight, self.layer.bias, self.limit)
        device = hidden.device.type
        with torch.autocast(device, enabled=False):
            found = self.request.fused(rows_NH, head)
        self.names = tuple(found)
        # FSDP hooks the backward pass on these very tensors, and warns about views.
        return tuple(value.clone() for value in found.values())

    def answers(self, logits: Any) -> dict[str, Tensor]:
        """The tensors that `forward` returned, by name."""
        return dict(zip(self.names, logits, strict=True))
