"""Keeps keys and passwords out of the config, which verl prints, Hydra saves and wandb receives."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError

SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""Last parts of the names of environment variables with secret values."""
SHORTEST = 8
"""Characters of the shortest secret; a shorter value (`EMPTY`, a 1) may well occur elsewhere in a config."""
ENVIRONMENTS = ("env_vars", "env_set")
"""Names of the sections that set environment variables: Ray's and Hydra's."""
REMEDY = "export it on the nodes before Ray starts there; the processes of the run inherit it"


def refuse_secrets(config: DictConfig, environ: Mapping[str, str]) -> None:
    """Refuses a config that holds the value of a secret variable of `environ`, or sets a secret variable.

    Raises:
        ConfigError: the message names the key and the remedy, and does not show the value.
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
    """Whether a variable's name says that its value is secret."""
    return name.upper().endswith(SECRET)


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables whose values are secret."""
    return {name: value for name, value in environ.items() if is_secret(name) and len(value) >= SHORTEST}


def leaves(node: DictConfig | ListConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value as a text, with the keys that lead to it; of Hydra's own section only `job.env_set`."""
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


def value_at(node: DictConfig | ListConfig, key: Any) -> object:  # OmegaConf types the keys of lists and dicts apart
    """The value at `key`, resolvers (`${oc.env:NAME}`) applied; None if there is no value yet.

    A reference to another key (`${trainer.project_name}`) is left as text: a message must name the other key.
    """
    if OmegaConf.is_missing(node, key):
        return None
    # Only the node has an interpolation's text, and OmegaConf's public interface hides the node.
    text = cast(Node, node._get_node(key))._value()
    if OmegaConf.is_interpolation(node, key) and ":" not in str(text).replace("oc.select:", ""):
        return text
    try:
        return node[key]
    except OmegaConfBaseException:  # it cannot be resolved: verl will say so
        return None
