"""The exact terms of the actor loss: what is read at which token ids, and the loss per token. Torch only.

Shapes: N response tokens, K support ids, F ids of the extra forward KL, M = 1 + K + F columns (the sampled token
first). Nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_verl.objective_hooks import ObjectiveHook, ObjectiveInputs
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Support, Tail
from opd_verl.schema import GATE, JOINT_FIELDS, OFF_POLICY_TOKENS, TEACHER_FIELDS, TOKEN_FIELDS, support_fields


@dataclass(frozen=True)
class Terms:
    """`coefficient * (objective on the support + forward_kl_coefficient * gate * FKL on the teacher's top-k +
    cross_entropy * off_policy * -log p(y))`.

    objective: the loss per token on the support; None: the sampled token only, whose loss is verl's policy loss.
    forward_kl_k: F, 0 without the forward KL (objectives/README.md 5, EOPD eq. 10). cross_entropy: on the tokens of
    the data set's responses (objectives/README.md 6).
    """

    support: Support
    k: int
    objective: ObjectiveHook | None
    coefficient: float
    forward_kl_k: int
    forward_kl_coefficient: float
    eps_low: float
    eps_high: float
    cross_entropy: float = 0.0

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
        """K: the fields of one side's top-k may hold more ids than this support has."""
        where = support_fields(self.support)
        found = data[where.ids].shape[-1]
        return found if where is JOINT_FIELDS else min(self.k, found)

    def losses(self, log_p_NM: Tensor, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss per token [N] of every term, by name; their sum is what is trained on.

        Args:
            log_p_NM: student log-probs at `columns(data)`; carries the gradient.
            data: flat fields of the same tokens.
        """
        found, k = {}, self.width(data) if self.on_support else 0
        if self.objective is not None and self.on_support:
            inputs = self.objective_inputs(log_p_NM[:, 0], log_p_NM[:, 1 : 1 + k], data)
            found["divergence"] = self.coefficient * self.objective(inputs)
        if self.forward_kl_k:
            log_q = data[TEACHER_FIELDS.log_q][:, : self.forward_kl_k]
            divergence = support_divergence(log_p_NM[:, 1 + k :], log_q, Divergence.forward, Tail.renorm_teacher)
            found["forward_kl"] = self.coefficient * self.forward_kl_coefficient * data[GATE] * divergence
        if self.cross_entropy:
            found["cross_entropy"] = -self.coefficient * self.cross_entropy * data[OFF_POLICY_TOKENS] * log_p_NM[:, 0]
        return found

    def objective_inputs(self, log_p: Tensor, log_p_support: Tensor, data: Mapping[str, Tensor]) -> ObjectiveInputs:
        """What an objective hook sees of these tokens."""
        where, k = support_fields(self.support), log_p_support.shape[-1]
        return ObjectiveInputs(
            log_p=log_p,
            log_p_old=data["old_log_probs"],
            log_q=data["teacher_log_probs"],
            advantage=data["advantages"],
            log_p_support=log_p_support,
            log_p_old_support=data[where.log_p_old][:, :k],
            log_q_support=data[where.log_q][:, :k],
            member=data[where.ids][:, :k] >= 0,
            teacher_entropy=data.get("teacher_entropy"),
            eps_low=self.eps_low,
            eps_high=self.eps_high,
        )
