"""Requests of the engine to the LM head for one micro-batch, answered on the fused or on the plain path.

Shapes: N response tokens of the micro-batch, H hidden size, V ids of the tokenizer, M columns. Nats, float32.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.log_probs import fused_log_probs
from opd_verl.fused.loss import fused_full_divergence, fused_support_loss
from opd_verl.fused.rows import HeadWeights
from opd_verl.fused.statistics import row_statistics
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Tail
from opd_verl.schema import (
    DIVERGENCE,
    LOG_P,
    OPD_LOSS,
    OPTIONAL_FIELDS,
    STUDENT_FIELDS,
    TEACHER_FIELDS,
    TEACHER_HIDDEN,
)
from opd_verl.training.update.actor_loss import OpdLoss, aggregation_weights
from opd_verl.training.update.terms import DivergenceObjective
from opd_verl.training.verl_types import Fields


@dataclass(frozen=True, eq=False)
class UpdateRequest:
    """One micro-batch of the actor update: the loss's fields, flat [N, ...], and how to read the student's head."""

    loss: OpdLoss
    fields: dict[str, Tensor]
    weights: Tensor
    """`aggregation_weights` [N]."""
    temperature: Tensor | None
    """Rollout temperature of each token [N]; None: 1 everywhere."""
    with_entropy: bool
    teacher_head: LMHead | None
    """The teacher's LM head, where the objective reads the whole vocabulary."""
    rows: int | None
    """Rows of logits that exist at one time; None: a number that suits the device."""

    @classmethod
    def of(
        cls,
        loss: OpdLoss,
        data: Fields,
        temperature: Tensor | None,
        with_entropy: bool,
        teacher_head: LMHead | None,
        rows: int | None,
    ) -> "UpdateRequest":
        """Reads the fields that the loss's terms name from a micro-batch."""
        names = [*loss.terms.field_names, *([TEACHER_HIDDEN] if loss.terms.full else [])]
        names = [name for name in names if name not in OPTIONAL_FIELDS or name in data]
        fields = {name: data[name].values() for name in names}
        weights = aggregation_weights(data, loss.config)
        return cls(loss, fields, weights, temperature, with_entropy, teacher_head, rows)

    @property
    def needs_columns(self) -> bool:
        """Whether the loss reads log-probs at chosen ids; False where it reads the whole distribution alone."""
        return self.loss.needs_log_prob_gradient or self.loss.terms.any or not self.loss.terms.full

    @property
    def full_objective(self) -> DivergenceObjective:
        """The divergence over the whole vocabulary; the checks before the run allow no other objective there."""
        objective = self.loss.terms.objective
        assert isinstance(objective, DivergenceObjective)
        return objective

    def fused(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """`log_p` and `entropy` of the sampled tokens, values of the exact terms, and `opd_loss` (see `OpdLoss`)."""
        answers: dict[str, Tensor] = {}
        if self.loss.terms.full:
            answers |= self.fused_full(hidden_NH, head)
        if not self.needs_columns:
            return answers
        columns = self.loss.terms.columns(self.fields)
        if self.loss.needs_log_prob_gradient or not self.loss.terms.any:
            log_p, entropy = fused_log_probs(hidden_NH, head, columns, self.temperature, self.with_entropy, self.rows)
            answers |= {LOG_P: log_p[:, 0]} | ({} if entropy is None else {"entropy": entropy})
            return answers | self.loss.terms.losses(log_p, self.fields)
        # No part of verl's loss reads log_p: each chunk can form the gradient of its own sum at once, which saves a
        # pass over the head. `log_p` and the values are detached then; `opd_loss` alone carries the gradient.
        done = fused_support_loss(
            hidden_NH, head, columns, self.chunk_loss, self.weights, self.temperature, rows=self.rows
        )
        return {OPD_LOSS: done.loss, LOG_P: done.log_p[:, 0], **self.loss.terms.losses(done.log_p, self.fields)}

    def chunk_loss(self, log_p_CM: Tensor, rows: slice) -> Tensor:
        """The sum of the terms for some of the tokens [C]."""
        chunk = {name: value[rows] for name, value in self.fields.items()}
        return torch.stack(list(self.loss.terms.losses(log_p_CM, chunk).values())).sum(0)

    def fused_full(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """The divergence over the whole vocabulary."""
        assert self.teacher_head is not None
        objective = self.full_objective
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
        return {OPD_LOSS: done.loss, LOG_P: done.log_p[:, 0], DIVERGENCE: divergence}

    def plain(self, log_p_NV: Tensor) -> dict[str, Tensor]:
        """The exact terms from log-probs over the whole vocabulary, by autograd: the reference for `fused`."""
        terms, values = self.loss.terms, {}
        if terms.any:
            # Column -1 means "no id"; clamped, it reads id 0, whose value the terms ignore by their member mask.
            values |= terms.losses(log_p_NV.gather(-1, terms.columns(self.fields).clamp(min=0)), self.fields)
        if terms.full:
            assert self.teacher_head is not None
            objective = self.full_objective
            log_q_NV = self.teacher_head.logits(self.fields[TEACHER_HIDDEN]).log_softmax(-1)
            value = support_divergence(log_p_NV, log_q_NV, objective.divergence, Tail.none, objective.beta)
            values[DIVERGENCE] = terms.coefficient * value
        return values


@dataclass(frozen=True, eq=False)
class LogProbRequest:
    """One micro-batch of the log-prob pass: no gradient, the student's top-k, and log-probs at the teacher's ids."""

    tokens: Tensor
    """Sampled token ids [N]."""
    teacher_ids: Tensor | None
    """The teacher's top-k ids [N, K], if log p at these ids is asked for."""
    topk: int
    """k of the student's top-k; 0: none."""
    temperature: Tensor | None
    rows: int | None

    def fused(self, hidden_NH: Tensor, head: HeadWeights) -> dict[str, Tensor]:
        """`log_p` and `entropy` of every response token, and `with_topk`'s fields."""
        ids = self.tokens[:, None].long()
        if self.teacher_ids is not None:
            ids = torch.cat([ids, self.teacher_ids.long()], dim=-1)
        bias = None if head.bias is None else head.bias[: head.limit]
        lm_head = LMHead(head.weight[: head.limit], bias, scale=1.0, softcap=None, temperature=1.0)
        done = row_statistics(lm_head, hidden_NH, ids, self.topk, self.temperature, self.rows)
        sampled = {LOG_P: done.log_p[:, 0], "entropy": done.entropy}
        return sampled | self.with_topk(done.topk_ids, done.topk_log_p, done.log_p[:, 1:])

    def plain(self, log_p_NV: Tensor) -> dict[str, Tensor]:
        """`with_topk`'s fields from log-probs over the whole vocabulary."""
        top = log_p_NV.topk(self.topk, dim=-1)
        ids = self.tokens[:, None] if self.teacher_ids is None else self.teacher_ids
        return self.with_topk(top.indices.int(), top.values, log_p_NV.gather(-1, ids.long()))

    def with_topk(self, topk_ids: Tensor, topk_log_p: Tensor, at_teacher: Tensor) -> dict[str, Tensor]:
        """The fields that were asked for: the student's top-k, and its log-probs at the teacher's ids."""
        fields = {}
        if self.topk:
            fields |= {STUDENT_FIELDS.ids: topk_ids, STUDENT_FIELDS.log_p_old: topk_log_p}
        if self.teacher_ids is not None:
            fields[TEACHER_FIELDS.log_p_old] = at_teacher
        return fields


HeadRequest = UpdateRequest | LogProbRequest


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
        # The layer itself stays in the model: FSDP gathers its weights around the model's forward pass.
        layer.forward = self.forward  # type: ignore[method-assign]

    def forward(self, hidden: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`hidden` [1, T, H] packed or [B, L, H] padded; logits, or the request's answers."""
        if self.request is None:
            return self.original(hidden)
        # Hidden states may be float32 from a final norm; the products with the head run in the head's own dtype.
        rows_NH = self.select(hidden).to(self.layer.weight.dtype)
        head = HeadWeights(self.layer.weight, self.layer.bias, self.limit)
        # verl runs the model under autocast; the fused functions choose the dtype of every product themselves.
        with torch.autocast(hidden.device.type, enabled=False):
            answers = self.request.fused(rows_NH, head)
        self.names = tuple(answers)
        # FSDP hooks the backward pass on these very tensors, and warns about views.
        return tuple(value.clone() for value in answers.values())

    def answers(self, logits: Iterable[Tensor]) -> dict[str, Tensor]:
        """The tensors that `forward` returned, by name."""
        return dict(zip(self.names, logits, strict=True))
