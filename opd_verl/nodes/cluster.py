"""The Ray cluster that the job will run on: found as `ray.init` finds it, its nodes, and a probe on each."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, exceptions
from ray._private import services, state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import opd_verl
from opd_verl.config.errors import ConfigError, first_line
from opd_verl.nodes.probe import NodeProbe
from opd_verl.nodes.records import Node
from opd_verl.utils.network import unreachable

START = (
    "`ray start --head --port=6379` on the first machine, `ray start --address=FIRST:6379` on each other; "
    "from elsewhere `export RAY_ADDRESS=FIRST:6379`"
)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster that the job would find.

    Raises:
        ConfigError: there is none, or it does not answer.
    """
    there = address_of(address)
    if "://" not in there and (problem := unreachable(f"ray://{there}")):
        raise ConfigError("RAY_ADDRESS", there, f"no Ray cluster answers there ({problem})", START)
    try:
        ray.init(there, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:  # another Python or Ray than the cluster's is the latter
        raise ConfigError("RAY_ADDRESS", there, first_line(error), START) from error
    try:
        yield
    finally:
        ray.shutdown()


def address_of(address: str | None) -> str:
    """RAY_ADDRESS, then `ray_kwargs.ray_init.address`, then what the last `ray start` here left.

    Not Ray's "auto", which takes any cluster of this machine, another job's too; the job would start one of its own.
    """
    chosen = os.environ.get("RAY_ADDRESS") or (address if address not in ("auto", "local") else None)
    found = chosen or services.find_bootstrap_address(None)
    if not found:
        raise ConfigError("RAY_ADDRESS", None, "no Ray cluster was started on this machine", START)
    return found


def nodes(resource: str) -> list[Node]:
    """Every node that is alive; `resource` is Ray's name for its devices."""
    listed: Any = ray.nodes()
    free = state.available_resources_per_node()  # as verl asks
    alive = [node_of(node, free, resource) for node in listed if node["Alive"]]
    return sorted(alive, key=lambda node: (node.address, node.id))


def node_of(listed: Mapping[str, Any], free: Mapping[str, Mapping[str, float]], resource: str) -> Node:
    """One entry of `ray.nodes()`; Ray's folder there is the one above its sockets."""
    total, left = listed["Resources"], free.get(listed["NodeID"], {})
    return Node(
        id=listed["NodeID"],
        address=listed["NodeManagerAddress"],
        devices=int(total.get(resource, 0)),
        free_devices=int(left.get(resource, 0)),
        cpus=int(total.get("CPU", 0)),
        ray_folder=str(Path(listed["ObjectStoreSocketName"]).parent.parent),
    )


@contextmanager
def carried() -> Iterator[None]:
    """Our code travels to the nodes by value: a node without opd_verl, or with another version of it, answers too."""
    cloudpickle.register_pickle_by_value(opd_verl)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(opd_verl)


def start_probe(node: Node) -> Any:
    """The handle of an actor on this node and no other."""
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(num_cpus=0)(NodeProbe).options(scheduling_strategy=here).remote()


def collect(calls: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """The answers that came in time, and for the others why there is none."""
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else None
    answers, failures = {}, {}
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=0)
        except exceptions.GetTimeoutError:
            failures[name] = f"no answer within {seconds:g} s"
        except (exceptions.RayError, OSError, ImportError, ValueError) as error:
            failures[name] = reason(error)
    return answers, failures


def reason(error: BaseException) -> str:
    """The line of Ray's many that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, exceptions.RayTaskError) else " ".join(lines)[:300]
