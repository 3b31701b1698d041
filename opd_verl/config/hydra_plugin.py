"""Makes `python -m verl.trainer.main_ppo recipe=opd cluster=1x8 teacher=vllm` resolve on verl's own, unchanged mains.

Hydra accepts `recipe=opd` only where the primary config's defaults list has a `recipe` entry. A config source reads
verl's own file and appends the empty slots; everything else of verl's config is served untouched.
"""

import os
from importlib import resources
from typing import Any, ClassVar

from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

VERL_CONFIGS = "verl.trainer.config"
PRIMARY_CONFIGS = {
    "ppo_trainer": "hydra_configs",
    "ppo_megatron_trainer": "hydra_configs",
    "sft_trainer_engine": "hydra_configs.sft",
}
"""verl's trainer configs, and the package with the recipes for each."""
SLOTS = ("recipe", "cluster", "teacher")


class RecipeSlot(ImportlibResourcesConfigSource):
    """verl's own configs, with our `SLOTS` at the end of the trainer's defaults list."""

    broken_by: ClassVar[Exception | None] = None  # why opd_verl could not register; recipes report it

    @staticmethod
    def scheme() -> str:
        """The prefix of a search path that this source serves."""
        return "recipe-slot"

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads one of verl's configs; the trainer's gets the slots (`null`, so that a typo lists the options)."""
        result = super().load_config(config_path)
        config: Any = result.config
        if config_path in PRIMARY_CONFIGS:
            RecipeSource.package = PRIMARY_CONFIGS[config_path]
            config.defaults.extend([{slot: None} for slot in SLOTS])
        return result


class RecipeSource(ImportlibResourcesConfigSource):
    """Our recipes for the trainer whose config was read last, which Hydra always reads before its defaults.

    Refuses to serve a recipe when the plugin could not register with verl.
    """

    package: ClassVar[str] = PRIMARY_CONFIGS["ppo_trainer"]

    @property
    def path(self) -> str:
        """The package that the recipes are read from."""
        return self.package

    @path.setter
    def path(self, value: str) -> None:
        """Hydra's base class sets it; `package` is what counts."""

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


def with_teacher(value: Any, otherwise: Any, *, _root_: Any) -> Any:
    """`${with_teacher:4,8}` in a cluster's file: 4 where the recipe has a teacher (an `opd:` section), else 8."""
    return value if "opd" in _root_ else otherwise


def own_ray(value: Any) -> Any:
    """`${own_ray:64}`: for `ray.init` where it starts Ray; null on a cluster that runs, which knows its own sizes."""
    return None if os.environ.get("RAY_ADDRESS") else value


def register() -> None:
    """Registers the three plugins with Hydra, and what the clusters' files compute with."""
    OmegaConf.register_new_resolver("with_teacher", with_teacher, replace=True)
    OmegaConf.register_new_resolver("own_ray", own_ray, replace=True)
    for plugin in (RecipeSlot, RecipeSource, RecipeSearchPath):
        Plugins.instance().register(plugin)
