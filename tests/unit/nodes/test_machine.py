"""A process describes its machine, the config its needs; both travel to a node that does not have opd_verl."""

import os
import pickle
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf, open_dict
from ray import cloudpickle
from recipes_harness import compose_ppo
from tiny_models import save_tiny_qwen3

from opd_verl.checks.models import STUDENT
from opd_verl.config.opd import parse_opd
from opd_verl.nodes.cluster import carried
from opd_verl.nodes.contents import file_size, model_files
from opd_verl.nodes.folder import Folder
from opd_verl.nodes.gpus import cuda_driver, gpus
from opd_verl.nodes.machine import look, torch_build
from opd_verl.nodes.needs import Needs, read_needs
from opd_verl.nodes.probe import NodeProbe, partners
from opd_verl.nodes.records import Checklist, GpuState

SECRET = "a-key-that-must-not-travel"
CHECKLIST = Checklist("checkpoints/none/yet", {}, (), "api.wandb.ai")
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=driver_version) echo "580.65.06"; echo "580.65.06" ;;
  --query-gpu=*) echo "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 21559, 0"
                 echo "1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 81004, [N/A]" ;;
  --query-compute-apps=*) echo "GPU-aa, 4711, python, 60000" ;;
esac
"""


def needs(*overrides: str, recipe: str = "opd") -> Needs:
    """The needs of a composed config."""
    models = ["opd.teacher.path=/models/teacher"] if recipe != "grpo" else []
    config = compose_ppo(f"recipe={recipe}", "actor_rollout_ref.model.path=/models/student", *models, *overrides)
    return read_needs(config, parse_opd(config) if "opd" in config else None)


def test_versions_and_builds_are_those_of_the_packages() -> None:
    machine = look(CHECKLIST)
    assert machine.versions["torch"] == torch.__version__ and machine.versions["verl"] == "0.9.1"
    assert machine.versions["vllm"] and machine.versions["python"] == sys.version.split()[0]
    assert (torch_build() == "cuda") == (torch.version.cuda is not None)
    assert machine.checkpoints.path == str(Path("checkpoints/none/yet").absolute()) and machine.checkpoints.free > 0
    assert machine.memory_total >= machine.memory_free > 0 and machine.host == socket.gethostname()


def test_what_nvidia_smi_prints_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    mib = 2**20
    assert gpus() == (
        GpuState(0, "NVIDIA H100 80GB HBM3", 81559 * mib, 21559 * mib, 0, ("pid 4711 python 60000 MiB",)),
        GpuState(1, "NVIDIA H100 80GB HBM3", 81559 * mib, 81004 * mib, 0, ()),
    )
    assert cuda_driver() == "580.65.06"


def test_without_nvidia_smi_or_with_a_broken_one_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == () and cuda_driver() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus() == () and cuda_driver() is None


def test_the_key_of_wandb_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not look(CHECKLIST).wandb_key
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    machine = look(CHECKLIST)
    assert machine.wandb_key and SECRET not in repr(machine)


def test_a_model_folder_is_its_config_and_its_files_sizes(tmp_path: Path) -> None:
    save_tiny_qwen3(tmp_path / "one")
    item = model_files(str(tmp_path / "one"))
    assert item.problem is None and item.sizes
    assert item.sizes["model.safetensors"] == (tmp_path / "one/model.safetensors").stat().st_size
    (tmp_path / "one/config.json").write_text("{}")
    assert model_files(str(tmp_path / "one")).config != item.config
    (tmp_path / "one/config.json").unlink()
    assert "no config.json" in (model_files(str(tmp_path / "one")).problem or "")
    assert f"no such model folder ({tmp_path / 'two'})" == model_files(str(tmp_path / "two")).problem


def test_a_hub_name_is_cached_or_the_hub_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    problem = model_files("owner/no-such-model-of-ours").problem
    assert problem == "no such folder, not in the local hub cache, and HF_HUB_OFFLINE is set"
    commit = "c" * 40
    repo = tmp_path / "models--owner--cached"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = model_files("owner/cached")
    assert cached.problem is None and cached.commit == commit


def test_a_data_file_or_a_folder_of_files_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    (tmp_path / "b.parquet").write_bytes(b"1")
    assert file_size(str(tmp_path / "a.parquet")) == 5 and file_size(str(tmp_path)) == 6
    assert file_size(str(tmp_path / "c.parquet")) is None


def test_the_code_answers_on_a_node_that_has_none_of_ours() -> None:
    """A process in which `import opd_verl` fails, as on a node where it was not installed."""
    with carried():
        carried_code = cloudpickle.dumps((NodeProbe, CHECKLIST))
    assert cloudpickle.loads(carried_code)[0] is NodeProbe, "what comes back is of the driver's own classes"
    code = (
        "import sys, pickle; sys.modules['opd_verl'] = None; probe, checklist = pickle.load(sys.stdin.buffer); "
        "machine = probe().look(checklist, '/tmp'); print(machine.host, machine.versions['verl'])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=carried_code, capture_output=True, timeout=120)
    assert done.stdout.decode().split() == [socket.gethostname(), "0.9.1"], done.stderr.decode()


def test_two_probes_of_one_folder_see_each_others_files_and_leave_none(tmp_path: Path) -> None:
    probe = NodeProbe()
    with Folder(str(tmp_path / "new/run"), ".token") as folder:
        assert probe.exchange(str(tmp_path / "new/run"), ".token", ".token_1") is None
        assert folder.lacks(".token_1") is None and "do not arrive here" in (folder.lacks(".token_2") or "")
        elsewhere = NodeProbe()
        (tmp_path / "other").mkdir()
        assert "is not the driver's" in (elsewhere.exchange(str(tmp_path / "other"), ".token", ".token_2") or "")
        assert "no folder" in (elsewhere.exchange(str(tmp_path / "none"), ".token", ".token_2") or "")
        probe.clean()
        assert folder.lacks(".token_1")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert not any((tmp_path / "other").iterdir())


def test_a_folder_with_checkpoints_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "global_step_5").mkdir()
    with Folder(str(tmp_path), ".token"):
        assert (tmp_path / ".token").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["global_step_5"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Folder(str(tmp_path / "file/run"), ".token") as folder:
        assert folder.problem and "cannot write" in folder.problem


def test_an_open_port_is_reached_and_a_closed_one_is_not() -> None:
    item, other = NodeProbe(), NodeProbe()
    port = item.listen()
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
    started = time.monotonic()
    targets = {"one": ("127.0.0.1", port), "closed": ("127.0.0.1", closed.getsockname()[1])}
    assert other.connect(targets) == ["closed"] and time.monotonic() - started < 10
    assert other.connect({}) == []


def test_few_nodes_connect_to_all_and_many_in_a_ring_and_to_the_first() -> None:
    assert partners(["a", "b", "c"], 3) == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
    assert partners(["a", "b", "c", "d"], 3) == {"a": ["b"], "b": ["a", "c"], "c": ["a", "d"], "d": ["a"]}
    assert partners(["a"], 3) == {"a": []} and partners([], 3) == {}


def test_the_config_says_what_is_needed() -> None:
    actual = needs(
        *("trainer.nnodes=2", "trainer.n_gpus_per_node=6", "trainer.save_freq=10", "trainer.default_local_dir=/runs/a"),
        *("data.train_files=[a.parquet,hdfs://x/b.parquet]", "data.val_files=a.parquet", "trainer.logger=[console]"),
        *("opd.teacher.n_gpus_per_node=2", "opd.teacher.nnodes=2"),
    )
    assert (actual.nnodes, actual.n_gpus_per_node, actual.folder, actual.saves) == (2, 6, "/runs/a", True)
    assert actual.models == {STUDENT: "/models/student", "opd.teacher.path": "/models/teacher"}
    assert actual.files == ("a.parquet",) and not actual.wandb and not actual.syncs
    assert (actual.teachers[""].nnodes, actual.teachers[""].n_gpus_per_node) == (2, 2)
    assert actual.checkpoint_bytes is None, "nobody knows the size of a student that is not there"
    assert needs("opd.teacher.colocate=true").teachers == {}, "it has no devices of its own"


def test_a_recipe_without_teacher_needs_the_student_alone() -> None:
    actual = needs(recipe="grpo")
    assert actual.models == {STUDENT: "/models/student"} and actual.teachers == {}


def test_a_checkpoint_has_the_size_of_weights_and_moments(tmp_path: Path) -> None:
    save_tiny_qwen3(tmp_path)
    weights = (tmp_path / "model.safetensors").stat().st_size  # float32, and a small header
    path = f"actor_rollout_ref.model.path={tmp_path}"
    size = needs(path, "trainer.save_freq=1").checkpoint_bytes
    assert size and 0.9 < size / (3 * weights) < 1.0
    assert needs(path).checkpoint_bytes is None, "nothing is saved"


def test_of_the_jobs_environment_the_names_are_kept_and_no_value() -> None:
    config = compose_ppo("recipe=grpo", "actor_rollout_ref.model.path=/models/student").copy()
    with open_dict(config):
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", {"WANDB_API_KEY": SECRET}, force_add=True)
    needs_read = read_needs(config, None)
    assert needs_read.env == {"WANDB_API_KEY"} and not re.search(SECRET, repr(needs_read))
    assert SECRET.encode() not in pickle.dumps(needs_read.checklist())
