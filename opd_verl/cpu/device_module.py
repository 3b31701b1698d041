"""The part of `torch.cuda`'s interface that verl calls on a device module, answered for host memory."""

from __future__ import annotations

import psutil
import torch

GIB = 2**30


def is_available() -> bool:
    """The host is always there."""
    return True


def device_count() -> int:
    """One host, one device."""
    return 1


def current_device() -> int:
    """Index of the only device."""
    return 0


def set_device(device: object) -> None:
    """Does nothing: there is one device."""


def synchronize(device: object = None) -> None:
    """Does nothing: CPU kernels have finished when they return."""


def empty_cache() -> None:
    """Does nothing: the host allocator keeps no cache of ours."""


def ipc_collect() -> None:
    """Does nothing: no IPC handles exist."""


def memory_allocated(device: object = None) -> int:
    """Resident memory of this process, bytes."""
    return psutil.Process().memory_info().rss


def memory_reserved(device: object = None) -> int:
    """Equal to `memory_allocated`: the host has no reserve."""
    return memory_allocated()


def max_memory_allocated(device: object = None) -> int:
    """Resident memory of this process, bytes (the host keeps no peak per device)."""
    return memory_allocated()


def max_memory_reserved(device: object = None) -> int:
    """Equal to `max_memory_allocated`."""
    return memory_allocated()


def reset_peak_memory_stats(device: object = None) -> None:
    """Does nothing: no peak is kept."""


def mem_get_info(device: object = None) -> tuple[int, int]:
    """(available, total) host memory, bytes."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def get_rng_state(device: object = None) -> torch.Tensor:
    """torch's CPU generator state, so that a checkpoint resumes with the same numbers."""
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: object = None) -> None:
    """Restores what `get_rng_state` returned."""
    torch.set_rng_state(state)


def manual_seed(seed: int) -> None:
    """Seeds torch's CPU generator."""
    torch.manual_seed(seed)


manual_seed_all = manual_seed


def get_device_name(device: object = None) -> str:
    """The name in logs; verl also looks it up in its table of peak FLOP/s (unknown there: MFU is reported as 0)."""
    return "cpu"
