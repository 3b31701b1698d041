"""Objective hooks: a loss per token of your own on a top-k support, named by `opd.objective.name`.

A hook is a pure function `ObjectiveInputs -> Tensor [N]`, the loss of each token; opd_verl masks, weights and averages.
What carries a gradient is the student's log-probs, `log_p` and `log_p_support`; everything else is fixed.

    from opd_verl.objective_hooks import ObjectiveInputs, register_objective

    @register_objective("squared_log_ratio")
    def squared_log_ratio(inputs: ObjectiveInputs) -> Tensor:
        gap = (inputs.log_p_support - inputs.log_q_support).masked_fill(~inputs.member, 0.0)
        return 0.5 * gap.square().sum(dim=-1)

`opd.plugins=[my_package.my_objectives] opd.objective.name=squared_log_ratio opd.objective.support=student_topk
opd.objective.k=16` imports the module that holds it and trains on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from opd_verl.config.registry import Registry


@dataclass(frozen=True)
class ObjectiveInputs:
    """What an objective may read of N response tokens and their K support ids. float32, nats."""

    log_p: Tensor
    """log p(y_t) [N] of the policy in training; carries the gradient."""
    log_p_old: Tensor
    """log p_old(y_t) [N]: the student that sampled the rollout."""
    log_q: Tensor
    """log q(y_t) [N]: the teacher at the same prefix."""
    advantage: Tensor
    """A_t [N], fixed when the rollout was scored."""
    log_p_support: Tensor
    """log p at the support's ids [N, K]; carries the gradient."""
    log_p_old_support: Tensor | None
    """log p_old at the same ids [N, K]; None where the run does not keep it."""
    log_q_support: Tensor
    """log q at the same ids [N, K]."""
    member: Tensor
    """False where a support has fewer than K ids, bool [N, K]; what the other fields hold there must not count."""
    teacher_entropy: Tensor | None
    """Full-vocabulary entropy of q [N]; None where several teachers are averaged."""
    eps_low: float
    """The policy loss's clip range is [1 - eps_low, 1 + eps_high]."""
    eps_high: float
    """See `eps_low`."""


ObjectiveHook = Callable[[ObjectiveInputs], Tensor]
OBJECTIVE_HOOKS: Registry[ObjectiveHook] = Registry("objective")


def register_objective(name: str) -> Callable[[ObjectiveHook], ObjectiveHook]:
    """Registers an objective under `name`; a name taken by another function is a ValueError."""
    return OBJECTIVE_HOOKS.register(name)
