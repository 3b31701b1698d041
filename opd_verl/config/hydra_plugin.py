"""Makes `python -m verl.trainer.main_ppo recipe=opd cluster=1x8 teacher=vllm` resolve on verl's own, unchanged mains.

Hydra accepts `recipe=opd` only where the primary config's defaults list has a `recipe` entry. A config source reads
verl's own file and appends the empty slots; everything else of verl's config is served untouched.
"""

import os
from importlib import resources
from typing import ClassVar, TypeVar, cast

from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

Value = TypeVar("Value")
VERL_CONFIGS = "verl.trainer.config"
PRIMARY_CONFIGS = {
    "ppo_trainer": "hydra_configs",
    "ppo_megatron_trainer": "hydra_configs",
    "sft_trainer_engine": "hydra_configs.sft",
}
"""Package with the recipes for each of verl's trainer configs."""
SLOTS = ("recipe", "cluster", "teacher")


class RecipeSlot(ImportlibResourcesConfigSource):
    """verl's own configs, with our `SLOTS` at the end of the trainer's defaults list."""

    broken_by: ClassVar[Exception | None] = None
    """The error with which opd_verl failed to register with verl; recipes report it."""

    @staticmethod
    def scheme() -> str:
        """The prefix of a search path that this source serves."""
        return "recipe-slot"

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads one of verl's configs. A trainer's config gets the slots, so Hydra answers a typo with the options."""
        result = super().load_config(config_path)
        if config_path in PRIMARY_CONFIGS:
            RecipeSource.package = PRIMARY_CONFIGS[config_path]
            defaults = cast(DictConfig, result.config).defaults
            defaults.extend([{slot: None} for slot in SLOTS])
        return result


class RecipeSource(ImportlibResourcesConfigSource):
    """Our recipes, for the trainer whose config was read last: Hydra reads it before its defaults.

    Refuses to serve a recipe when the plugin could not register with verl.
    """

    package: ClassVar[str] = PRIMARY_CONFIGS["ppo_trainer"]

    @property
    def path(self) -> str:
        """The package that the recipes are read from."""
        return self.package

    @path.setter
    def path(self, value: str) -> None:
        """Ignores the path that Hydra's base class sets: `package` decides."""

    @staticmethod
    def scheme() -> str:
        """The prefix of a search path that this source serves."""
        return "opd-recipe"

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads `recipe/<name>.yaml`, `cluster/<name>.yaml` or `teacher/<name>.yaml`.

        Raises:
            SystemExit: the plugin is broken. Not an Exception: Hydra would fold it into a long trace.
        """
        if RecipeSlot.broken_by is not None:
            cause = RecipeSlot.broken_by
            raise SystemExit(
                f"opd_verl: `{config_path}` cannot be used, the plugin failed to register with verl: "
                f"{type(cause).__name__}: {cause}\n"
                "Run `python -c 'import opd_verl.plugin'` for the full trace."
            )
        return super().load_config(config_path)


class RecipeSearchPath(SearchPathPlugin):
    """Puts the slots before verl's configs and our recipes after them; leaves other Hydra apps alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Acts only where the main config is verl's trainer config."""
        verl_paths = {f"pkg://{VERL_CONFIGS}", str(resources.files(VERL_CONFIGS))}
        mains = [p.path.removeprefix("file://") for p in search_path.get_path() if p.provider == "main" and p.path]
        if any(path in verl_paths for path in mains):
            search_path.prepend(provider="opd_verl", path=f"{RecipeSlot.scheme()}://{VERL_CONFIGS}")
            search_path.append(provider="opd_verl", path=f"{RecipeSource.scheme()}://hydra_configs")


def with_teacher(value: Value, otherwise: Value, *, _root_: DictConfig) -> Value:
    """`${with_teacher:4,8}` in a cluster's file: 4 where the recipe has a teacher (an `opd:` section), else 8."""
    return value if "opd" in _root_ else otherwise


def own_ray(value: Value) -> Value | None:
    """`${own_ray:64}`: 64 where `ray.init` starts Ray; null on a running cluster, which knows its own sizes."""
    return None if os.environ.get("RAY_ADDRESS") else value


def register() -> None:
    """Registers the three plugins with Hydra, and the two resolvers of the clusters' files."""
    OmegaConf.register_new_resolver("with_teacher", with_teacher, replace=True)
    OmegaConf.register_new_resolver("own_ray", own_ray, replace=True)
    for plugin in (RecipeSlot, RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
