"""Records of the nodes: a node's own answers, and the driver's report about it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

GIB = 2**30
"""Bytes of a GiB; all sizes here are in bytes."""


@dataclass(frozen=True)
class GpuState:
    """One GPU as nvidia-smi sees it, with the memory of all its users; sizes in bytes."""

    index: int
    name: str
    total: int
    free: int
    ecc_errors: int
    """Uncorrected errors since the driver was loaded; 0 where the GPU does not count them."""
    processes: tuple[str, ...]
    """Processes that hold memory of this GPU."""


@dataclass(frozen=True)
class Disk:
    """The file system that a path lies on, or will lie on; bytes."""

    path: str
    free: int
    total: int


@dataclass(frozen=True)
class ModelFiles:
    """One model on one machine: the files of a folder, or the cached commit of a hub name."""

    problem: str | None = None
    """Why the machine cannot load the model; None: it can."""
    config: str | None = None
    """The digest of a folder's config.json."""
    sizes: Mapping[str, int] | None = None
    """Bytes of a folder's weight and tokenizer files."""
    commit: str | None = None
    """The cached commit of a hub name; None where the model would be downloaded."""


@dataclass(frozen=True)
class Checklist:
    """The paths that each machine looks at, as the job's processes will get them."""

    folder: str
    """The folder of the checkpoints."""
    models: Mapping[str, str]
    """Folder or hub name of each model, by its key in the config."""
    files: tuple[str, ...]
    """Paths of data files."""
    wandb_host: str
    """The server that wandb would log in to."""


@dataclass(frozen=True)
class Machine:
    """One machine, as a Ray worker on it sees it."""

    host: str
    cwd: str
    versions: Mapping[str, str | None]
    accelerator: str | None
    """The accelerator that its torch is built for: cuda, hip, npu, or None."""
    platform: str | None
    """Value of VERL_PLATFORM."""
    driver: str | None
    """Version of the CUDA driver."""
    devices: tuple[GpuState, ...]
    memory_free: int
    memory_total: int
    checkpoints: Disk
    ray_disk: Disk | None
    shm: Disk | None
    open_files: int
    interface: str | None
    """Value of NCCL_SOCKET_IFNAME."""
    wandb_key: bool
    """Whether the machine has a key; the key itself never leaves it."""
    models: Mapping[str, ModelFiles]
    files: Mapping[str, int | None]
    """Size of each data file; None where there is no such file."""


@dataclass(frozen=True)
class Node:
    """A node as Ray lists it, with Ray's logical devices."""

    id: str
    address: str
    devices: int
    free_devices: int
    cpus: int
    ray_folder: str


@dataclass(frozen=True)
class Clock:
    """Seconds that a node's clock is ahead of the driver's clock, and the possible error of this measurement."""

    ahead: float
    uncertainty: float


@dataclass(frozen=True)
class NodeReport:
    """One row of the table."""

    node: Node
    label: str
    machine: Machine | None = None
    failure: str | None = None
    """Why the node did not answer, or stopped answering."""
    clock: Clock | None = None
    unshared: str | None = None
    """Why the node's folder of the checkpoints is not the driver's folder."""
    asked: int = 0
    """Number of nodes that it was asked to connect to."""
    unreachable: tuple[str, ...] = ()
    """Labels of the nodes that it could not connect to."""


def answering(reports: Iterable[NodeReport]) -> Iterator[tuple[str, NodeReport, Machine]]:
    """Label, report and machine of every node that answered."""
    for report in reports:
        if report.machine is not None:
            yield report.label, report, report.machine
