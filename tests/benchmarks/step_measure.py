"""Measures seconds of interleaved variants in this process, and peak memory of a variant in its own process."""

import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from step_inputs import Shape, make_inputs
from step_ours import Step
from step_variants import StepVariant

MIB = 2**20
WARM_TOKENS = 8
SHARE_OF_FREE_MEMORY = 0.9
OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory|MemoryError|bad_alloc")


def timed(step: Step, device: torch.device) -> float:
    """Returns the seconds of one step; its results are freed after the clock has stopped."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    outcome = step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    del outcome
    return seconds


def interleaved(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of `repeats` rounds, each with one step per variant in turn; a first round is dropped."""
    rounds = [{name: timed(step, device) for name, step in steps.items()} for _ in range(repeats + 1)]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in steps}


def spread(seconds: list[float]) -> float:
    """Returns (max - min) / median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def status_bytes(key: str) -> int:
    """Reads VmHWM, VmRSS or VmSize of this process, or MemAvailable of the machine, bytes."""
    path = "/proc/meminfo" if key.startswith("Mem") else "/proc/self/status"
    (kilobytes,) = re.findall(rf"^{key}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def host_peak(step: Step) -> int:
    """Returns the largest number of bytes that one step adds to this process.

    The address space is limited first: a step that does not fit raises instead of taking the machine down.
    """
    room = int(SHARE_OF_FREE_MEMORY * status_bytes("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + room, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present size
    start = status_bytes("VmRSS")
    outcome = step()
    peak = status_bytes("VmHWM") - start
    del outcome
    return peak


def device_peak(step: Step) -> int:
    """Returns the largest number of bytes that one step adds to the GPU's allocations."""
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    outcome = step()
    peak = torch.cuda.max_memory_allocated() - start
    del outcome
    return peak


def peak_of(variant: StepVariant, shape: Shape, dtype: torch.dtype, device: torch.device) -> int:
    """Makes inputs, warms up (libraries are loaded; compiled code is made for the shape), and measures one step."""
    inputs = make_inputs(shape, dtype, device)
    warm = inputs if variant.compiled else inputs.first(WARM_TOKENS)
    variant.prepare(warm)()
    step = variant.prepare(inputs) if warm is not inputs else variant.prepare(warm)
    if variant.compiled:
        step()
    gc.collect()
    return device_peak(step) if device.type == "cuda" else host_peak(step)


def peak_in_child(arguments: list[str], threads: int) -> int | str:
    """Runs the script with `--memory-child`. Returns peak bytes, or the reason why there is no number.

    glibc's threshold is fixed, so that freed blocks of 1 MiB and more go back to the system: memory kept from the
    warm-up would hide a part of the peak. Raises RuntimeError where the child fails for another reason than memory.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    child = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    if child.returncode < 0 or OUT_OF_MEMORY.search(child.stderr):
        return "out of memory"
    raise RuntimeError(f"{' '.join(arguments)} failed:\n{child.stderr}")
