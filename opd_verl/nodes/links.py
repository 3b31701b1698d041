"""Checks between nodes: connections and clocks."""

from collections.abc import Iterator, Sequence

from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import ClusterProblem, error, warning
from opd_verl.nodes.records import Machine, NodeReport

CONFUSED, WRONG = 1.0, 60.0
"""Seconds of skew above which log and file times mislead, and above which hubs and stores refuse tokens."""


def check_ports(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Nodes reach each other's free ports: torch's rendezvous, NCCL, vLLM and TransferQueue listen on such ports."""
    for report in reports:
        if report.unreachable:
            what = f"cannot open a connection to a free port of {', '.join(report.unreachable)}"
            ports = "open TCP ports 1024-65535 between the nodes (`iptables -L`, security group, network policy)"
            yield error(report.label, what, ports)


def check_clocks(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Clocks agree, within the uncertainty of the measurement."""
    for report in reports:
        if report.clock is None:
            continue
        skew = abs(report.clock.ahead) - report.clock.uncertainty
        if skew > CONFUSED:
            what = f"its clock is {report.clock.ahead:+.1f} s off (within {report.clock.uncertainty:.1f} s)"
            yield (error if skew > WRONG else warning)(
                report.label, what, "`chronyc makestep`, or `ntpdate -u pool.ntp.org`"
            )


CHECKS = (check_ports, check_clocks)
