"""Objective hooks: your own loss per token on a top-k support, named by `opd.objective.name`.

A hook is a pure function `ObjectiveInputs -> Tensor [N]`, the loss of each token; opd_verl masks, weights and averages.
Only the student's log-probs, `log_p` and `log_p_support`, carry a gradient.

    from opd_verl.objective_hooks import ObjectiveInputs, register_objective

    @register_objective("squared_log_ratio")
    def squared_log_ratio(inputs: ObjectiveInputs) -> Tensor:
        gap = (inputs.log_p_support - inputs.log_q_support).masked_fill(~inputs.member, 0.0)
        return 0.5 * gap.square().sum(dim=-1)

`opd.plugins=[my_package.my_objectives] opd.objective.name=squared_log_ratio opd.objective.support=student_topk
opd.objective.k=16` imports the module and trains on the hook's loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from opd_verl.config.registry import Registry


@dataclass(frozen=True)
class ObjectiveInputs:
    """N response tokens and their K support ids, as an objective may read them. float32, nats."""

    log_p: Tensor
    """log p(y_t) [N] of the student in training; carries a gradient."""
    log_p_old: Tensor
    """log p_old(y_t) [N] of the student that sampled the rollout."""
    log_q: Tensor
    """log q(y_t) [N] of the teacher after the same tokens."""
    advantage: Tensor
    """A_t [N], fixed when the rollout was scored."""
    log_p_support: Tensor
    """log p at the support's ids [N, K]; carries a gradient."""
    log_p_old_support: Tensor | None
    """log p_old at the support's ids [N, K]; None where the run does not keep it."""
    log_q_support: Tensor
    """log q at the support's ids [N, K]."""
    member: Tensor
    """bool [N, K]: False where a support has fewer than K ids. The fields `*_support` must not count there."""
    teacher_entropy: Tensor | None
    """Full-vocabulary entropy of q [N]; None where several teachers are averaged."""
    eps_low: float
    """The policy loss clips its ratio to [1 - eps_low, 1 + eps_high]."""
    eps_high: float
    """Upper part of the clip range."""


ObjectiveHook = Callable[[ObjectiveInputs], Tensor]
"""A registered objective, or a built-in objective."""
OBJECTIVE_HOOKS: Registry[ObjectiveHook] = Registry("objective")


def register_objective(name: str) -> Callable[[ObjectiveHook], ObjectiveHook]:
    """Registers an objective under `name`; a name taken by another function is a ValueError."""
    return OBJECTIVE_HOOKS.register(name)
