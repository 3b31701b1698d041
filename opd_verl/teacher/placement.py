"""Whether the trainer's and the teacher's resource pools fit the cluster's nodes; Ray would wait for ever if not."""

from collections.abc import Sequence
from typing import Any

import ray
from verl.utils.device import get_resource_name

from opd_verl.config import TeacherConfig
from opd_verl.errors import ConfigError


def free_devices() -> list[int]:
    """Accelerators of every node that is alive."""
    nodes: Any = ray.nodes()
    return [int(node["Resources"].get(get_resource_name(), 0)) for node in nodes if node["Alive"]]


def placeable(nodes: Sequence[int], trainer: tuple[int, int], teacher: tuple[int, int]) -> bool:
    """Whether groups of (devices per group, number of groups) fit, no group spread over two nodes.

    Exact: for every number of trainer groups placed so far, the most teacher groups that fit beside them.
    """
    best = {0: 0}
    for devices in nodes:
        grown: dict[int, int] = {}
        for placed, teachers in best.items():
            for more in range(devices // trainer[0] + 1):
                beside = teachers + (devices - more * trainer[0]) // teacher[0]
                grown[placed + more] = max(grown.get(placed + more, 0), beside)
        best = grown
    return any(placed >= trainer[1] and teachers >= teacher[1] for placed, teachers in best.items())


def check_placement(nodes: Sequence[int], trainer: Any, teacher: TeacherConfig) -> None:
    """Raises ConfigError for pools that do not fit; `trainer` is verl's `trainer` section."""
    train, score = (trainer.n_gpus_per_node, trainer.nnodes), (teacher.n_gpus_per_node, teacher.nnodes)
    if not placeable(nodes, train, score):
        problem = (
            f"{score[1]} x {score[0]} devices for the teacher and {train[1]} x {train[0]} for the trainer "
            f"(trainer.nnodes x trainer.n_gpus_per_node) do not fit nodes with {sorted(nodes, reverse=True)}"
        )
        remedy = "lower trainer.n_gpus_per_node or opd.teacher.n_gpus_per_node; each group must fit one node"
        raise ConfigError("opd.teacher.n_gpus_per_node", score[0], problem, remedy)
