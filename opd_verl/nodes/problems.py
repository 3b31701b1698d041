"""A problem of the cluster, and one record for all nodes that have the same problem."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

DRIVER, CLUSTER = "this machine", "cluster"
"""Names in place of a node's name, for problems of the driver's machine and of the whole cluster."""


class Severity(StrEnum):
    """error: the job would fail; warning: the job may be slow, or its logs may mislead."""

    error = "error"
    warning = "warning"


@dataclass(frozen=True)
class ClusterProblem:
    """A problem, the nodes that have it, and the remedy: a command or setting."""

    severity: Severity
    nodes: tuple[str, ...]
    what: str
    remedy: str


def error(node: str, what: str, remedy: str) -> ClusterProblem:
    """A problem of one node that would make the job fail."""
    return ClusterProblem(Severity.error, (node,), what, remedy)


def warning(node: str, what: str, remedy: str) -> ClusterProblem:
    """A problem of one node that may make the job slow or mislead."""
    return ClusterProblem(Severity.warning, (node,), what, remedy)


def merged(problems: Iterable[ClusterProblem]) -> list[ClusterProblem]:
    """Each problem once, with all nodes that have it; errors first."""
    by_text: dict[tuple[Severity, str, str], ClusterProblem] = {}
    for problem in problems:
        key = (problem.severity, problem.what, problem.remedy)
        same = by_text.get(key)
        by_text[key] = replace(problem, nodes=(*same.nodes, *problem.nodes)) if same else problem
    return sorted(by_text.values(), key=lambda problem: problem.severity is not Severity.error)
