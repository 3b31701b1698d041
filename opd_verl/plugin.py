"""Loaded by `import verl` in every process (entry-point group `verl.plugins`); registers opd_verl with verl and Hydra.

verl logs a plugin's import error at DEBUG and carries on. So nothing here may fail unseen: whatever goes wrong is
handed to the Hydra plugin, which then refuses every `recipe=` with that cause instead of letting plain PPO train.
"""

from opd_verl import hydra_plugin


def register_with_verl() -> None:
    """Puts our platform, advantage estimator, policy loss, engine and trainer into verl's registries."""
    from opd_verl.cpu.activate import activate_on_cpu

    activate_on_cpu()
    from opd_verl import advantage, engine, policy_loss, trainer  # noqa: F401  (each registers itself on import)


try:
    register_with_verl()
except Exception as cause:
    hydra_plugin.register(broken_by=cause)
    raise
else:
    hydra_plugin.register()
