"""Asks the probes, and writes one report for each node. A node that does not answer costs only its time limit."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import ray
from ray import exceptions
from ray.actor import ActorHandle

from opd_verl.nodes.cluster import carried, collect, start_probe
from opd_verl.nodes.folder import Folder
from opd_verl.nodes.probe import partners
from opd_verl.nodes.records import Checklist, Clock, Machine, Node, NodeReport

PINGS = 5
ALL_PAIRS = 16
"""Largest number of nodes of which each connects to all others."""
Probes = dict[str, ActorHandle]
Reports = dict[str, NodeReport]
"""Probes and reports are keyed by the id of the node."""


def gather(nodes: Sequence[Node], checklist: Checklist, seconds: float) -> list[NodeReport]:
    """Looks at every node. Each kind of question has `seconds` for all nodes together."""
    with carried():
        probes: Probes = {node.id: start_probe(node) for node in nodes}
        reports = look_at(nodes, probes, checklist, seconds)
        for look in (read_clocks, exchange_files, open_connections):
            answering = {name: probes[name] for name, report in reports.items() if report.failure is None}
            look(answering, reports, checklist, seconds)
    return list(reports.values())


def look_at(nodes: Sequence[Node], probes: Probes, checklist: Checklist, seconds: float) -> Reports:
    """The first answer of every node, or the reason why there is none."""
    calls: dict[str, ray.ObjectRef[Machine]] = {
        node.id: probes[node.id].look.remote(checklist, node.ray_folder) for node in nodes
    }
    machines, failures = collect(calls, seconds)
    hosts = [machine.host for machine in machines.values()]
    return {
        node.id: NodeReport(
            node, label(node, machines.get(node.id), hosts), machines.get(node.id), failures.get(node.id)
        )
        for node in nodes
    }


def label(node: Node, machine: Machine | None, hosts: Sequence[str]) -> str:
    """The host's name, with Ray's id where two nodes are on one host; the address of a node that does not answer."""
    if machine is None:
        return f"{node.address} ({node.id[:6]})"
    return machine.host if hosts.count(machine.host) == 1 else f"{machine.host} ({node.id[:6]})"


def fail(reports: Reports, failures: Mapping[str, str]) -> None:
    """Writes into the reports why nodes stopped answering."""
    for name, why in failures.items():
        reports[name] = replace(reports[name], failure=why)


def read_clocks(probes: Probes, reports: Reports, checklist: Checklist, seconds: float) -> None:
    """Measures each node's clock: the shortest of some round trips has the smallest uncertainty."""
    for name, probe in probes.items():
        try:
            clock = min((ping(probe, seconds) for _ in range(PINGS)), key=lambda reading: reading.uncertainty)
            reports[name] = replace(reports[name], clock=clock)
        except exceptions.RayError:
            fail(reports, {name: f"no answer within {seconds:g} s to a second question"})


def ping(probe: ActorHandle, seconds: float) -> Clock:
    """One reading of a node's clock. The node read it between sending and return: half the round trip is uncertain."""
    sent = time.time()
    theirs = cast(float, ray.get(probe.now.remote(), timeout=seconds))
    came = time.time()
    return Clock(theirs - (sent + came) / 2, (came - sent) / 2)


def exchange_files(probes: Probes, reports: Reports, checklist: Checklist, seconds: float) -> None:
    """Checks that each node sees the driver's file in the folder of the checkpoints, and the driver the node's file."""
    token = uuid.uuid4().hex
    with Folder(checklist.folder, f".opd_verl_nodes_{token}") as folder:
        if folder.problem is not None:
            reports |= {name: replace(reports[name], unshared=f"here the driver {folder.problem}") for name in probes}
            return
        own = {name: f"{folder.name}_{index}" for index, name in enumerate(probes)}
        calls: dict[str, ray.ObjectRef[str | None]] = {
            name: probe.exchange.remote(checklist.folder, folder.name, own[name]) for name, probe in probes.items()
        }
        problems, failures = collect(calls, seconds)
        fail(reports, failures)
        for name, problem in problems.items():
            reports[name] = replace(reports[name], unshared=problem or folder.lacks(own[name]))
        collect({name: probes[name].clean.remote() for name in problems}, seconds)


def open_connections(probes: Probes, reports: Reports, checklist: Checklist, seconds: float) -> None:
    """Lets every node listen on a free port, and its partners connect to it."""
    listening: dict[str, ray.ObjectRef[int]] = {name: probe.listen.remote() for name, probe in probes.items()}
    ports, failures = collect(listening, seconds)
    fail(reports, failures)
    targets = {name: (reports[name].node.address, port) for name, port in ports.items()}
    asked = partners(list(ports), ALL_PAIRS)
    connecting: dict[str, ray.ObjectRef[list[str]]] = {
        name: probes[name].connect.remote({to: targets[to] for to in asked[name]}) for name in ports
    }
    closed, failures = collect(connecting, seconds)
    fail(reports, failures)
    for name, lost in closed.items():
        missed = tuple(reports[other].label for other in lost)
        reports[name] = replace(reports[name], asked=len(asked[name]), unreachable=missed)
