"""Whether this process runs on the CPU platform, and the environment that vLLM needs there."""

import os

import torch

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Defaults of variables that the user has not set.

* Cache of vLLM, GiB; without it vLLM takes half of the machine's memory.
* No compilation: vLLM compiles helpers of its sampler for 10 s even when told to stay eager.
* vLLM's engine runs in its caller's process, which `distributed_executor_backend: uni` (cluster=local_cpu) asks for.
"""


def cpu_selected() -> bool:
    """True when `VERL_PLATFORM=cpu`, or when it is unset and this torch can drive no accelerator at all.

    The build of torch decides, not the presence of a device: the head node of a GPU cluster often has none.
    """
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if platform:
        return platform == "cpu"
    return torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu")
