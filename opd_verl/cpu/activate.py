"""Decides whether this process runs on the CPU platform, and only then switches it on."""

import os

import torch

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Unless the user says otherwise: GiB of vLLM's cache, half of the machine's memory without it; no compilation, as vLLM
compiles helpers of its sampler for 10 s even when told to stay eager; and leave for `distributed_executor_backend: uni`
(cluster=local_cpu), which vLLM otherwise turns into a process more."""


def cpu_selected() -> bool:
    """True when `VERL_PLATFORM=cpu`, or when it is unset and this torch can drive no accelerator at all.

    The build of torch decides, not the presence of a device: the head node of a GPU cluster often has none.
    """
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if platform:
        return platform == "cpu"
    return torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu")


def activate_on_cpu() -> None:
    """Registers the `cpu` platform and its patches; does nothing at all on a machine with accelerators."""
    if not cpu_selected():
        return
    from opd_verl.cpu import patches, platform  # noqa: F401  (the platform registers itself on import)

    patches.apply()
    # Child processes must agree with this one, whatever they can detect.
    os.environ["VERL_PLATFORM"] = "cpu"
    # verl registers its FSDP engines for cuda and npu only; this is verl's own switch to look one of them up.
    # It can go once verl registers them for cpu.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
