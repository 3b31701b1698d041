"""All checks of a cluster: those of the nodes, and those that the job itself would begin with."""

from collections.abc import Iterable, Iterator, Sequence

from omegaconf import DictConfig

from opd_verl.checks.preflight import preflight
from opd_verl.config.errors import ConfigError
from opd_verl.nodes import hardware, links, software, storage
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import DRIVER, Problem, error, merged
from opd_verl.nodes.records import Machine, NodeReport

CHECKS = (*software.CHECKS, *hardware.CHECKS, *storage.CHECKS, *links.CHECKS)


def refusals(config: DictConfig) -> Iterator[ConfigError]:
    """What `opd_verl.checks.preflight` would end the job with, where its recipe has an `opd:` section."""
    if "opd" in config:
        try:
            preflight(config)
        except ConfigError as refused:
            yield refused


def find_problems(
    needs: Needs, driver: Machine, reports: Sequence[NodeReport], refused: Iterable[ConfigError] = ()
) -> list[Problem]:
    """Every problem once, errors first."""
    found = [problem for check in CHECKS for problem in check(needs, driver, reports)]
    told = {problem.what.split("=")[0] for problem in found if DRIVER in problem.nodes}
    found += [error(DRIVER, one.problem, one.remedy) for one in refused if one.key not in told]
    return merged(found)
