"""Whether the trainer's and the teachers' resource pools fit the cluster's nodes; Ray would wait for ever if not."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import ray
from verl.utils.device import get_resource_name

from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import teacher_key
from opd_verl.config.sections import TeacherConfig


class TrainerPool(Protocol):
    """The two keys of verl's `trainer` section that size its resource pool."""

    @property
    def n_gpus_per_node(self) -> int:
        """Devices of a node."""
        ...

    @property
    def nnodes(self) -> int:
        """Nodes."""
        ...


def free_devices() -> list[int]:
    """Accelerators of every node that is alive."""
    return [int(node["Resources"].get(get_resource_name(), 0)) for node in ray.nodes() if node["Alive"]]


def fillings(devices: int, pools: Sequence[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """Every way to fill one node: how many groups of each pool it takes, at most as many as the pool has."""
    if not pools:
        yield ()
        return
    (size, count), *others = pools
    for taken in range(min(count, devices // size) + 1):
        for rest in fillings(devices - taken * size, others):
            yield (taken, *rest)


def placeable(nodes: Sequence[int], *pools: tuple[int, int]) -> bool:
    """Whether pools of (devices per group, number of groups) fit, no group spread over two nodes.

    The answer is exact: node after node, all reachable numbers of placed groups of each pool are tracked.
    """
    # A greedy placement is not enough: with nodes of 4 and 3, groups of 3 and 2 + 2 fit in one order only.
    needed = tuple(count for _, count in pools)
    reached = {(0,) * len(pools)}
    for devices in nodes:
        ways = list(fillings(devices, pools))
        grown = {tuple(map(sum, zip(placed, more, strict=True))) for placed in reached for more in ways}
        reached = {tuple(map(min, zip(placed, needed, strict=True))) for placed in grown}
    return needed in reached


def check_placement(nodes: Sequence[int], trainer: TrainerPool, teachers: Mapping[str, TeacherConfig]) -> None:
    """Raises ConfigError for pools that do not fit nodes with so many devices; `teachers` are by name."""
    pools = {teacher_key(name): (teacher.n_gpus_per_node, teacher.nnodes) for name, teacher in teachers.items()}
    if placeable(nodes, (trainer.n_gpus_per_node, trainer.nnodes), *pools.values()):
        return
    wanted = ", ".join(f"{count} x {size} devices for {key}" for key, (size, count) in pools.items())
    problem = (
        f"{wanted} and {trainer.nnodes} x {trainer.n_gpus_per_node} for the trainer "
        f"(trainer.nnodes x trainer.n_gpus_per_node) do not fit nodes with {sorted(nodes, reverse=True)}"
    )
    key, (size, _) = max(pools.items(), key=lambda pool: pool[1])
    remedy = f"lower trainer.n_gpus_per_node or {key}.n_gpus_per_node; each group must fit one node"
    raise ConfigError(f"{key}.n_gpus_per_node", size, problem, remedy)
