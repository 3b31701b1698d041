"""Decides whether this process runs on the CPU platform, and only then switches it on."""

import os

from opd_verl.cpu.selected import CPU_ENVIRONMENT, cpu_selected


def activate_on_cpu() -> None:
    """Registers the `cpu` platform and its patches; does nothing at all on a machine with accelerators."""
    if not cpu_selected():
        return
    from opd_verl.cpu import patches, platform  # noqa: F401  (the platform registers itself on import)

    patches.apply()
    # Child processes must agree with this process, even if they would detect another platform.
    os.environ["VERL_PLATFORM"] = "cpu"
    # verl registers its FSDP engines for cuda and npu only; this is verl's own switch to look one of them up.
    # It can go once verl registers them for cpu.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
