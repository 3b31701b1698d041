"""All checks of a cluster: the checks of its nodes, and the checks that the job itself begins with."""

from collections.abc import Iterable, Iterator, Sequence

from omegaconf import DictConfig

from opd_verl.checks.preflight import preflight
from opd_verl.config.errors import ConfigError
from opd_verl.nodes import hardware, links, software, storage
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import DRIVER, ClusterProblem, error, merged
from opd_verl.nodes.records import Machine, NodeReport

CHECKS = (*software.CHECKS, *hardware.CHECKS, *storage.CHECKS, *links.CHECKS)


def refusals(config: DictConfig) -> Iterator[ConfigError]:
    """The error with which `opd_verl.checks.preflight` would end the job, if its recipe has an `opd:` section."""
    if "opd" in config:
        try:
            preflight(config)
        except ConfigError as refused:
            yield refused


def find_problems(
    needs: Needs, driver: Machine, reports: Sequence[NodeReport], refused: Iterable[ConfigError] = ()
) -> list[ClusterProblem]:
    """Every problem once, errors first."""
    problems = [problem for check in CHECKS for problem in check(needs, driver, reports)]
    # The preflight refuses a missing model too; a problem about the same key is told once.
    told = {problem.what.split("=")[0] for problem in problems if DRIVER in problem.nodes}
    problems += [error(DRIVER, refusal.problem, refusal.remedy) for refusal in refused if refusal.key not in told]
    return merged(problems)
