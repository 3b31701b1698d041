"""The machine's GPUs by nvidia-smi: all GPUs and all users' memory, with or without CUDA_VISIBLE_DEVICES."""

import subprocess
from collections.abc import Iterator, Sequence

from opd_verl.nodes.records import GpuState

GPU_FIELDS = ("index", "uuid", "name", "memory.total", "memory.free", "ecc.errors.uncorrected.volatile.total")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
MIB = 2**20
SECONDS = 20
"""Time limit of nvidia-smi, which hangs where the kernel's driver hangs."""


def gpus() -> tuple[GpuState, ...]:
    """Every GPU of this machine; none where there is no nvidia-smi."""
    return parse_gpus(nvidia_smi("gpu", GPU_FIELDS), nvidia_smi("compute-apps", PROCESS_FIELDS))


def cuda_driver() -> str | None:
    """Version of the CUDA driver, where there is one."""
    return next((row[0] for row in nvidia_smi("gpu", ("driver_version",))), None)


def nvidia_smi(what: str, fields: Sequence[str]) -> list[list[str]]:
    """Rows of `nvidia-smi --query-...`; none where it is missing, fails or hangs."""
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def parse_gpus(rows: Sequence[Sequence[str]], processes: Sequence[Sequence[str]]) -> tuple[GpuState, ...]:
    """The GPUs from the cells of both queries. nvidia-smi counts in MiB, and prints `[N/A]` for a missing value."""
    return tuple(
        GpuState(
            int(index), name, number(total) * MIB, number(free) * MIB, number(ecc), tuple(holders(uuid, processes))
        )
        for index, uuid, name, total, free, ecc in rows
    )


def holders(uuid: str, processes: Sequence[Sequence[str]]) -> Iterator[str]:
    """The processes that hold memory of one GPU, as texts for users."""
    for gpu, pid, name, used in processes:
        if gpu == uuid:
            yield f"pid {pid} {name} {used} MiB"


def number(cell: str) -> int:
    """A cell's number; 0 where the cell holds no number."""
    return int(cell) if cell.isdecimal() else 0
