"""Modules of the user's own, which register hooks when they are imported."""

from collections.abc import Sequence
from importlib import import_module

from opd_verl.errors import ConfigError


def import_modules(key: str, modules: Sequence[str]) -> None:
    """Imports the user's modules, which register what they have; ConfigError under `key` for one that is not there."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(key, module, str(error), "put the module on PYTHONPATH") from error
