"""The planner's command line: its own options, two short names of models, and the job's overrides."""

from collections.abc import Mapping, Sequence

from opd_verl.checks import models
from opd_verl.config.errors import ConfigError
from opd_verl.config.overrides import hydra_value
from opd_verl.config.sections import Engine
from opd_verl.plan.devices import DEVICES

MODELS = {"student": models.STUDENT, "teacher": "opd.teacher.path"}
"""Short names of two config keys."""
ENGINES = {engine.value for engine in Engine}
"""Values of the job's own `teacher=` (`teacher=vllm`, `teacher=scorer`), which are not models."""
OWN = {"device": "h100", "response_tokens": ""}
"""The planner's own options, with their defaults."""


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The planner's own options, and the job's overrides."""
    own, overrides = dict(OWN), []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in OWN:
            own[name] = value
        elif name in MODELS and value not in ENGINES:
            overrides.append(f"{MODELS[name]}={hydra_value(value)}")
        else:
            overrides.append(argument)
    return own, overrides


def checked(own: Mapping[str, str]) -> tuple[str, int | None]:
    """The device's name and the mean response length.

    Raises:
        ConfigError: no such device, or not a positive number.
    """
    device, length = own["device"].lower(), own["response_tokens"]
    if device not in DEVICES:
        raise ConfigError("device", own["device"], f"known are {', '.join(DEVICES)}", "device=h100")
    if length and not (length.isdigit() and int(length)):
        raise ConfigError("response_tokens", length, "must be a positive number", "response_tokens=2000")
    return device, int(length) if length else None
