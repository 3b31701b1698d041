"""A problem of the cluster, and one line for all nodes that have the same."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

DRIVER, CLUSTER = "this machine", "cluster"
"""Names of what is no node."""


class Severity(StrEnum):
    """Whether the job would fail."""

    error = "error"
    warning = "warning"


@dataclass(frozen=True)
class Problem:
    """What is wrong on which nodes, and what to type against it."""

    severity: Severity
    nodes: tuple[str, ...]
    what: str
    remedy: str


def error(node: str, what: str, remedy: str) -> Problem:
    """The job would fail."""
    return Problem(Severity.error, (node,), what, remedy)


def warning(node: str, what: str, remedy: str) -> Problem:
    """The job may be slow or misled."""
    return Problem(Severity.warning, (node,), what, remedy)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """The same problem once, with all its nodes; errors first."""
    found: dict[tuple[Severity, str, str], Problem] = {}
    for problem in problems:
        key = (problem.severity, problem.what, problem.remedy)
        same = found.get(key)
        found[key] = replace(problem, nodes=(*same.nodes, *problem.nodes)) if same else problem
    return sorted(found.values(), key=lambda problem: problem.severity is not Severity.error)
