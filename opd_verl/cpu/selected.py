"""Whether this process runs on the CPU platform, and the environment that vLLM needs there."""

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
