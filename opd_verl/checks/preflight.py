"""Refuses a run that cannot work: in seconds, with one message, before Ray starts or a device is touched.

The checks run in the driver, in a Hydra callback that every OPD recipe names. They read configs,
tokenizers, the data's columns and the headers of weight files, never weights.
"""

import traceback
from collections.abc import Callable, Collection

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from opd_verl.checks import models, objective, off_policy, recipe, several_teachers, vllm_teacher
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, import_plugins, parse_opd

Check = Callable[[DictConfig, OpdConfig], list[str] | None]
"""Raises ConfigError; may return lines that say what was accepted."""


class Preflight(Callback):
    """The callback `hydra.callbacks.opd_preflight._target_`."""

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """Ends the process with the message of the first failed check.

        Raises:
            SystemExit: a setting cannot work. Hydra turns a callback's exceptions into warnings, but not this one.
        """
        try:
            print(*preflight(config), sep="\n", flush=True)
        except ConfigError as error:
            raise SystemExit(f"opd_verl: {error}") from None
        except OmegaConfBaseException as error:
            raise SystemExit(f"opd_verl: {error.full_key}: {str(error.msg).splitlines()[0]}") from None
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"opd_verl: the checks before the run failed: {error}") from error


def preflight(config: DictConfig, skip: Collection[Check] = ()) -> list[str]:
    """Runs every check but `skip`, cheapest first. Returns the printed line of each accepted teacher.

    Raises:
        ConfigError: names the key, its value and the remedy.
    """
    opd = parse_opd(config)
    import_plugins(opd)
    checks: tuple[Check, ...] = (
        *objective.CHECKS,
        *several_teachers.CHECKS,
        *vllm_teacher.CHECKS,
        *recipe.CHECKS,
        *off_policy.CHECKS,
        *models.CHECKS,
    )
    return [line for check in checks if check not in skip for line in check(config, opd) or []]
