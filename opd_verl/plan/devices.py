"""The planner's accelerators: numbers of the vendors' data sheets, and the share of each peak that a step reaches."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator: usable memory in GiB, dense bf16 TFLOP/s, memory bandwidth and host link in GB/s."""

    memory_gib: float
    tflops: float
    bandwidth_gbs: float
    host_gbs: float


DEVICES = {
    "h100": Device(79.1, 989.0, 3350.0, 55.0),
    "h200": Device(139.8, 989.0, 4800.0, 55.0),
    "h20": Device(95.1, 148.0, 4000.0, 55.0),
    "b200": Device(178.4, 2250.0, 8000.0, 55.0),
    "a100": Device(79.1, 312.0, 2039.0, 25.0),
    "a100-40": Device(39.4, 312.0, 1555.0, 25.0),
    "l40s": Device(44.4, 362.0, 864.0, 25.0),
}
"""Devices by the name that `device=` takes."""
CONTEXT_GIB = 0.7
"""GiB that a process takes on a device before any tensor: CUDA's context and the collectives' buffers."""
TRAIN_SHARE, FORWARD_SHARE, READ_SHARE, LINK_SHARE = 0.40, 0.50, 0.60, 0.60
"""Assumed shares of the peak: matrix products of an update, matrix products of a forward pass, reads of weights and KV
cache while decoding, transfers from the host."""
