"""What one node says of itself, and what the driver finds out about it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

GIB = 2**30
"""Sizes are in bytes."""


@dataclass(frozen=True)
class Device:
    """One GPU as nvidia-smi sees it, whoever uses it; sizes in bytes."""

    index: int
    name: str
    total: int
    free: int
    ecc_errors: int
    """Uncorrected, since the driver was loaded; 0 where the GPU does not count them."""
    processes: tuple[str, ...]
    """Those that hold memory of it."""


@dataclass(frozen=True)
class Disk:
    """The file system that a path lies on, or will lie on; bytes."""

    path: str
    free: int
    total: int


@dataclass(frozen=True)
class ModelFiles:
    """What a machine has of a model: the files of a folder, or the cached commit of a hub name."""

    problem: str | None = None
    """Why it cannot be loaded there."""
    config: str | None = None
    """The digest of a folder's config.json."""
    sizes: Mapping[str, int] | None = None
    """Bytes of a folder's weight and tokenizer files."""
    commit: str | None = None
    """Of a hub name; None where it would be downloaded."""


@dataclass(frozen=True)
class Wanted:
    """What a machine is asked about: paths as the job's processes will be given them."""

    folder: str
    """Of the checkpoints."""
    models: Mapping[str, str]
    """Folder or hub name, by its key in the config."""
    files: tuple[str, ...]
    wandb_host: str


@dataclass(frozen=True)
class Machine:
    """One machine, seen from a process of the job's kind."""

    host: str
    cwd: str
    versions: Mapping[str, str | None]
    accelerator: str | None
    """What its torch is built for: cuda, hip, npu, or None."""
    platform: str | None
    """VERL_PLATFORM."""
    driver: str | None
    """Version of the CUDA driver."""
    devices: tuple[Device, ...]
    memory_free: int
    memory_total: int
    checkpoints: Disk
    ray_disk: Disk | None
    shm: Disk | None
    open_files: int
    interface: str | None
    """NCCL_SOCKET_IFNAME."""
    wandb_key: bool
    """Whether there is one; what it is stays there."""
    models: Mapping[str, ModelFiles]
    files: Mapping[str, int | None]
    """Bytes; None where there is no such file."""


@dataclass(frozen=True)
class Node:
    """A node as Ray lists it; devices are Ray's logical ones."""

    id: str
    address: str
    devices: int
    free_devices: int
    cpus: int
    ray_folder: str


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of the driver's, and by how much that may be wrong; seconds."""

    ahead: float
    uncertainty: float


@dataclass(frozen=True)
class NodeReport:
    """One row of the table."""

    node: Node
    label: str
    machine: Machine | None = None
    failure: str | None = None
    """Why nothing, or not everything, is known of it."""
    clock: Clock | None = None
    unshared: str | None = None
    """Why the folder of the checkpoints is not the driver's."""
    asked: int = 0
    """Nodes that it was to open a connection to."""
    unreachable: tuple[str, ...] = ()
    """Those of them that it could not."""


def answering(reports: Iterable[NodeReport]) -> Iterator[tuple[str, NodeReport, Machine]]:
    """The nodes of which something is known, by their labels."""
    for report in reports:
        if report.machine is not None:
            yield report.label, report, report.machine
