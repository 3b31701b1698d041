"""Keys and passwords stay out of the config: verl prints it, Hydra saves it, and wandb is sent it."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError

SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""Ends of the names of environment variables whose values are nobody's business."""
SHORTEST = 8
"""Characters; a shorter value (`EMPTY`, a 1) is no secret and may well be elsewhere in a config."""
ENVIRONMENTS = ("env_vars", "env_set")
"""Sections of environment variables: Ray's and Hydra's."""
REMEDY = "export it on the nodes before Ray starts there; the processes of the run inherit it"


def refuse_secrets(config: DictConfig, environ: Mapping[str, str]) -> None:
    """No variable of `environ` with such a name may have its value in the config, and no section may set one.

    Raises:
        ConfigError: names the key and the remedy, and does not show the value.
    """
    known = secrets_of(environ)
    for path, value in leaves(config):
        if len(path) > 1 and path[-2] in ENVIRONMENTS and is_secret(path[-1]) and value:
            raise ConfigError(".".join(path), "***", "the config is printed, saved and sent to wandb", REMEDY)
        for name, secret in known.items():
            if secret in value:
                problem = f"the value of the environment variable {name} would be printed, saved and sent to wandb"
                raise ConfigError(".".join(path), "***", problem, REMEDY)


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is one."""
    return name.upper().endswith(SECRET)


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables whose values are secrets."""
    return {name: value for name, value in environ.items() if is_secret(name) and len(value) >= SHORTEST}


def leaves(node: DictConfig | ListConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value as a text, with the keys that lead to it; of Hydra's own section what a job's environment gets."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        here = (*path, str(key))
        if here[0] == "hydra" and here[1:] not in ((), ("job",)) and here[:3] != ("hydra", "job", "env_set"):
            continue
        value = value_at(node, key)
        if isinstance(value, DictConfig | ListConfig):
            yield from leaves(value, here)
        elif value is not None:
            yield here, str(value)


def value_at(node: DictConfig | ListConfig, key: Any) -> Any:
    """What is written there, or what a resolver (`${oc.env:NAME}`) makes of it; None where that is nothing yet.

    What refers to another key (`${trainer.project_name}`) is left as it is: the other key is the one to name.
    """
    if OmegaConf.is_missing(node, key):
        return None
    found: Any = node._get_node(key)
    if OmegaConf.is_interpolation(node, key) and ":" not in str(found._value()).replace("oc.select:", ""):
        return found._value()
    try:
        return node[key]
    except OmegaConfBaseException:  # it cannot be resolved: verl will say so
        return None
