"""The Ray cluster that the job will run on: found as `ray.init` finds it, with its nodes and a probe on each node."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, TypeVar, cast

import ray
from ray import cloudpickle, exceptions
from ray._private import services, state
from ray.actor import ActorHandle
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


Answer = TypeVar("Answer")


class ListedNode(TypedDict):
    """The keys of an entry of `ray.nodes()` that are read here."""

    NodeID: str
    NodeManagerAddress: str
    ObjectStoreSocketName: str
    Resources: Mapping[str, float]
    Alive: bool


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster that the job would find.

    Raises:
        ConfigError: there is no cluster, or it does not answer.
    """
    cluster = address_of(address)
    # A plain connection comes first: `ray.init` is slow to give up where nobody listens.
    if "://" not in cluster and (problem := unreachable(f"ray://{cluster}")):
        raise ConfigError("RAY_ADDRESS", cluster, f"no Ray cluster answers there ({problem})", START)
    try:
        ray.init(cluster, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: the cluster has another Python or Ray
        raise ConfigError("RAY_ADDRESS", cluster, first_line(error), START) from error
    try:
        yield
    finally:
        ray.shutdown()


def address_of(address: str | None) -> str:
    """The cluster's address: RAY_ADDRESS, `ray_kwargs.ray_init.address`, or the address of the last `ray start` here.

    Ray's "auto" is not used: it takes any cluster on this machine, even another job's, where the job starts a new one.
    """
    chosen = os.environ.get("RAY_ADDRESS") or (address if address not in ("auto", "local") else None)
    cluster = chosen or services.find_bootstrap_address(None)
    if not cluster:
        raise ConfigError("RAY_ADDRESS", None, "no Ray cluster was started on this machine", START)
    return cluster


def nodes(resource: str) -> list[Node]:
    """Every node that is alive; `resource` is Ray's name for its devices."""
    listed: list[ListedNode] = ray.nodes()
    free = state.available_resources_per_node()  # private, but it is what verl counts a pool's devices by
    alive = [node_of(node, free, resource) for node in listed if node["Alive"]]
    return sorted(alive, key=lambda node: (node.address, node.id))


def node_of(listed: ListedNode, free: Mapping[str, Mapping[str, float]], resource: str) -> Node:
    """The node of an entry of `ray.nodes()`. Ray's folder on it is the folder above Ray's sockets."""
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
    """Sends our code to the nodes by value: a node without opd_verl, or with another version of it, answers too."""
    cloudpickle.register_pickle_by_value(opd_verl)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(opd_verl)


def start_probe(node: Node) -> ActorHandle:
    """The handle of a probe that runs on this node and no other."""
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return cast(ActorHandle, ray.remote(num_cpus=0)(NodeProbe).options(scheduling_strategy=here).remote())


def collect(calls: "Mapping[str, ray.ObjectRef[Answer]]", seconds: float) -> tuple[dict[str, Answer], dict[str, str]]:
    """The answers that came in time, and the reason of each missing answer."""
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
    """The part of Ray's long message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, exceptions.RayTaskError) else " ".join(lines)[:300]
