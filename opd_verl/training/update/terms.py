"""The exact terms of the actor loss: the token ids that they read, and the loss per token. Torch only.

Shapes: N response tokens, K support ids, F ids of the extra forward KL, M = 1 + K + F columns (the sampled token
first). Nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objective_hooks import ObjectiveHook, ObjectiveInputs
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Support, Tail, Weighting
from opd_verl.objectives.policy_gradient import policy_gradient_topk
from opd_verl.schema import (
    CROSS_ENTROPY,
    DIVERGENCE,
    FORWARD_KL,
    GATE,
    JOINT_FIELDS,
    OFF_POLICY_TOKENS,
    TEACHER_ENTROPY,
    TEACHER_FIELDS,
    TEACHER_LOG_PROBS,
    TOKEN_FIELDS,
    support_fields,
)


@dataclass(frozen=True)
class DivergenceObjective:
    """An exact divergence on the support (objectives/README.md 2, 3)."""

    divergence: Divergence
    tail: Tail
    beta: float

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """[N], nats."""
        return support_divergence(
            inputs.log_p_support, inputs.log_q_support, self.divergence, self.tail, self.beta, inputs.member
        )


@dataclass(frozen=True)
class PolicyGradientObjective:
    """Rethinking's published runs: a clipped policy gradient per support token (objectives/README.md 4)."""

    weighting: Weighting

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """[N]; a surrogate, not a divergence."""
        assert inputs.log_p_old_support is not None
        return policy_gradient_topk(
            inputs.log_p_support,
            inputs.log_p_old_support,
            inputs.log_q_support,
            self.weighting,
            inputs.eps_low,
            inputs.eps_high,
            inputs.member,
        )


@dataclass(frozen=True)
class Terms:
    """`coefficient * (objective on the support + forward_kl_coefficient * gate * FKL on the teacher's top-k +
    cross_entropy * off_policy * -log p(y))`.

    Every factor is fixed when the rollout is scored; only log p carries a gradient.
    """

    support: Support
    k: int
    objective: ObjectiveHook | None
    """The loss per token on the support; None: the sampled token only, whose loss is verl's policy loss."""
    coefficient: float
    """`opd.mix.opd`: the weight of distillation beside a task reward."""
    forward_kl_k: int
    """F, the size of the teacher's top-k in the forward KL; 0 without it (objectives/README.md 5, EOPD eq. 10)."""
    forward_kl_coefficient: float
    eps_low: float
    """The policy loss's clip range is [1 - eps_low, 1 + eps_high]; hooks may read it."""
    eps_high: float
    cross_entropy: float = 0.0
    """Factor of -log p(y) on the tokens of the data set's responses (objectives/README.md 6)."""

    @property
    def on_support(self) -> bool:
        """Whether a term reads a support of several tokens that is not the whole vocabulary."""
        return self.objective is not None and self.support is not Support.full

    @property
    def full(self) -> bool:
        """Whether a term reads the whole vocabulary (objectives/README.md 2)."""
        return self.objective is not None and self.support is Support.full

    @property
    def any(self) -> bool:
        """Whether there is a term that reads columns."""
        return self.on_support or self.forward_kl_k > 0 or self.cross_entropy > 0

    @property
    def field_names(self) -> tuple[str, ...]:
        """The fields that `columns` and `losses` read."""
        names = ["responses"]
        if self.on_support:
            where = support_fields(self.support)
            names += [where.ids, where.log_q, where.log_p_old, *TOKEN_FIELDS]
        if self.forward_kl_k:
            names += [TEACHER_FIELDS.ids, TEACHER_FIELDS.log_q, GATE]
        if self.cross_entropy:
            names.append(OFF_POLICY_TOKENS)
        return tuple(dict.fromkeys(names))

    def columns(self, data: Mapping[str, Tensor]) -> Tensor:
        """Ids [N, M] whose log-probs the terms need, from flat fields; -1: none."""
        ids = [data["responses"][:, None].long()]
        if self.on_support:
            ids.append(data[support_fields(self.support).ids][:, : self.width(data)].long())
        if self.forward_kl_k:
            ids.append(data[TEACHER_FIELDS.ids][:, : self.forward_kl_k].long())
        return torch.cat(ids, dim=-1)

    def width(self, data: Mapping[str, Tensor]) -> int:
        """K of this support; a field with one side's top-k may hold more ids."""
        where = support_fields(self.support)
        ids = data[where.ids].shape[-1]
        return ids if where is JOINT_FIELDS else min(self.k, ids)

    def losses(self, log_p_NM: Tensor, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss per token [N] of every term, by name; the student trains on their sum.

        Args:
            log_p_NM: student log-probs at `columns(data)`; carries the gradient.
            data: flat fields of the same tokens.
        """
        values, k = {}, self.width(data) if self.on_support else 0
        if self.objective is not None and self.on_support:
            inputs = self.objective_inputs(log_p_NM[:, 0], log_p_NM[:, 1 : 1 + k], data)
            values[DIVERGENCE] = self.coefficient * self.objective(inputs)
        if self.forward_kl_k:
            log_q = data[TEACHER_FIELDS.log_q][:, : self.forward_kl_k]
            # The gate is EOPD's; `renorm_teacher` normalises q over its top-k and leaves p as it is (EOPD eq. 10).
            divergence = support_divergence(log_p_NM[:, 1 + k :], log_q, Divergence.forward, Tail.renorm_teacher)
            values[FORWARD_KL] = self.coefficient * self.forward_kl_coefficient * data[GATE] * divergence
        if self.cross_entropy:
            values[CROSS_ENTROPY] = -self.coefficient * self.cross_entropy * data[OFF_POLICY_TOKENS] * log_p_NM[:, 0]
        return values

    def objective_inputs(self, log_p: Tensor, log_p_support: Tensor, data: Mapping[str, Tensor]) -> ObjectiveInputs:
        """The tokens as an objective hook sees them."""
        where, k = support_fields(self.support), log_p_support.shape[-1]
        return ObjectiveInputs(
            log_p=log_p,
            log_p_old=data["old_log_probs"],
            log_q=data[TEACHER_LOG_PROBS],
            advantage=data["advantages"],
            log_p_support=log_p_support,
            log_p_old_support=data[where.log_p_old][:, :k],
            log_q_support=data[where.log_q][:, :k],
            member=data[where.ids][:, :k] >= 0,
            teacher_entropy=data.get(TEACHER_ENTROPY),
            eps_low=self.eps_low,
            eps_high=self.eps_high,
        )
