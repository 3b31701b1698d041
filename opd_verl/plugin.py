"""Loaded by `import verl` in every process (entry-point group `verl.plugins`); registers opd_verl with verl and Hydra.

Our modules are imported right after the verl module that they register with, and only in the processes that import
it: a rollout server or a reward worker does not pay for our trainer (2 CPU seconds per process).

verl logs a plugin's import error at DEBUG and carries on, so an error here would go unseen and plain PPO would train.
We hand it to the Hydra plugin, which then refuses every `recipe=` and names the cause. In a process without Hydra the
error is logged, and verl fails on the name that is missing from its registry.
"""

import importlib
import logging

from wrapt import register_post_import_hook

from opd_verl.config import hydra_plugin

REGISTERED_AFTER = {
    "verl.trainer.ppo.core_algos": ("opd_verl.training.advantage_estimator", "opd_verl.training.update.policy_loss"),
    "verl.workers.engine": ("opd_verl.training.update.engine",),
    "verl.trainer.ppo.v1.trainer_base": ("opd_verl.training.trainer",),
}
"""Each verl module that holds a registry, and our modules that register there when they are imported."""


def register_after(verl_module: str, ours: tuple[str, ...]) -> None:
    """Imports `ours` right after `verl_module`, or at once if that module is imported already.

    An error makes recipes fail and leaves plain verl alone.
    """

    def load(_: object) -> None:
        try:
            for name in ours:
                importlib.import_module(name)
        except Exception as cause:
            logging.getLogger(__name__).error("opd_verl could not register with %s: %r", verl_module, cause)
            hydra_plugin.RecipeSlot.broken_by = cause

    register_post_import_hook(load, verl_module)


def register_with_verl() -> None:
    """Puts our platform, advantage estimator, policy loss, engine and trainer into verl's registries."""
    from opd_verl.cpu.activate import activate_on_cpu

    activate_on_cpu()
    for verl_module, ours in REGISTERED_AFTER.items():
        register_after(verl_module, ours)


hydra_plugin.register()
try:
    register_with_verl()
except Exception as cause:
    hydra_plugin.RecipeSlot.broken_by = cause
    raise
