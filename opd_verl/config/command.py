"""A command's Hydra config as the command's own dataclass."""

from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd_verl.config.errors import ConfigError, first_line

Settings = TypeVar("Settings")


def check_least(settings: object, **least: int) -> None:
    """Raises ConfigError for a key whose value is set and lower than the key's `least` value."""
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is not None and value < lowest:
            raise ConfigError(name, value, f"must be at least {lowest}", f"{name}={lowest}")


def read_settings(schema: type[Settings], config: DictConfig, file: str) -> Settings:
    """`config` as a `schema`; `file` is the config file that shows every key, for the message.

    Raises ConfigError for a value of the wrong type or an unknown key.
    """
    structured = OmegaConf.structured(schema)
    for key in structured:
        section = OmegaConf.select(structured, str(key))
        if OmegaConf.is_config(section):  # OmegaConf takes a frozen dataclass for read-only
            OmegaConf.set_readonly(section, False)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(structured, config))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key)
        raise ConfigError(key, OmegaConf.select(config, key), first_line(error), f"see {file}") from error
    assert isinstance(settings, schema)
    return settings
