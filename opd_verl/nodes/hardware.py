"""Checks of the nodes' devices: enough of them, none held by others, none with memory errors."""

from collections.abc import Iterator, Sequence

from opd_verl.config.errors import ConfigError
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import CLUSTER, ClusterProblem, error, warning
from opd_verl.nodes.records import GIB, GpuState, Machine, NodeReport, answering
from opd_verl.teacher.placement import check_placement, placeable

CPUS_PER_DEVICE = 3
"""CPUs that verl reserves beside each device (RayResourcePool.max_colocate_count)."""
HELD = GIB
"""Bytes in use above which a process must hold the device; the driver itself takes some hundred MiB."""


def pools(needs: Needs) -> list[tuple[int, int]]:
    """(devices per group, groups) of the trainer and of each teacher with devices of its own."""
    teachers = [(teacher.n_gpus_per_node, teacher.nnodes) for teacher in needs.teachers.values()]
    return [(needs.n_gpus_per_node, needs.nnodes), *teachers]


def check_devices(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """The trainer's and the teachers' pools fit the free devices of the nodes that answer."""
    nodes = [report.node for _, report, _ in answering(reports)]
    free = [node.free_devices for node in nodes]
    if not placeable(free, *pools(needs)):
        yield too_few(needs, free, sum(node.devices for node in nodes) - sum(free))
    elif not placeable([min(node.free_devices, node.cpus // CPUS_PER_DEVICE) for node in nodes], *pools(needs)):
        said = ", ".join(f"{node.cpus} for {node.devices}" for node in nodes)
        what = f"verl reserves {CPUS_PER_DEVICE} CPUs beside each device, and the nodes have {said}"
        yield error(CLUSTER, what, f"`ray start --num-cpus=...`, {CPUS_PER_DEVICE} for each device and 2 more")


def too_few(needs: Needs, free: Sequence[int], held: int) -> ClusterProblem:
    """The problem of pools that do not fit `free` devices; `held` more belong to another job of this Ray cluster."""
    others = f"; {held} more are another job's (`ray list actors --filter state=ALIVE`)" if held else ""
    if not needs.teachers:
        what = (
            f"{needs.nnodes} x {needs.n_gpus_per_node} devices for the trainer do not fit nodes with {list(free)} free"
        )
        return error(CLUSTER, what + others, "lower trainer.nnodes or trainer.n_gpus_per_node, or add nodes")
    try:
        check_placement(free, needs, needs.teachers)
    except ConfigError as refused:
        return error(CLUSTER, f"{refused.problem} free{others}", refused.remedy)
    raise AssertionError("placeable and check_placement disagree")


def check_physical(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Ray must not count more devices than the machine has."""
    for label, report, machine in answering(reports):
        counted, real = report.node.devices, len(machine.devices)
        if needs.device == "cuda" and counted > real:
            what = f"Ray counts {counted} devices, and nvidia-smi {real}"
            restart = f"`ray stop; ray start --num-gpus={real} --address=FIRST:6379` there"
            yield error(label, what, restart if real else "repair its driver")


def check_device_memory(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Other processes hold no memory of the devices. An error where vLLM would not find its share free."""
    for label, report, machine in answering(reports):
        # Where Ray manages only some of the devices, the job may not get the held device: then only a warning.
        all_are_rays = report.node.devices >= len(machine.devices)
        for device in machine.devices if needs.device == "cuda" else ():
            if device.total - device.free > HELD:
                too_little = all_are_rays and device.free < needs.memory_share * device.total
                yield (error if too_little else warning)(label, held(device), f"{ending(device)}, or wait")


def held(device: GpuState) -> str:
    """The amount of a device's memory in use, and the processes that hold it."""
    by = ", ".join(device.processes) or "processes that nvidia-smi does not show"
    used = (device.total - device.free) / GIB
    return f"device {device.index}: {used:.1f} of {device.total / GIB:.1f} GiB are in use ({by})"


def ending(device: GpuState) -> str:
    """The command that ends the processes on a device."""
    pids = " ".join(process.split()[1] for process in device.processes)
    return f"`kill {pids}` there if they are yours" if pids else "`ray stop --force` there if they are yours"


def check_ecc(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """A device with uncorrected memory errors ends a run, or changes its numbers."""
    for label, _, machine in answering(reports):
        for device in machine.devices:
            if device.ecc_errors:
                what = f"device {device.index}: {device.ecc_errors} uncorrected ECC errors"
                yield warning(label, what, f"`nvidia-smi --gpu-reset -i {device.index}` there, or leave the node out")


CHECKS = (check_devices, check_physical, check_device_memory, check_ecc)
