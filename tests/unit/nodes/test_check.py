"""Every problem of a cluster is found, and a cluster that is in order has none. By value: no Ray, no config."""

from dataclasses import replace
from typing import Any

import pytest

from opd_verl.checks.models import STUDENT
from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import TeacherConfig
from opd_verl.nodes.check import find_problems
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import DRIVER, ClusterProblem, Severity, error, merged, warning
from opd_verl.nodes.records import Clock, Disk, GpuState, Machine, ModelFiles, Node, NodeReport

GIB = 2**30
TEACHER, DATA = "opd.teacher.path", "/data/train.parquet"
H100 = GpuState(0, "NVIDIA H100", 80 * GIB, 79 * GIB, 0, ())
MODEL = ModelFiles(config="c0ffee", sizes={"model.safetensors": 1000, "tokenizer.json": 10})
NAMES = ("python", "verl", "opd_verl", "ray", "torch", "vllm", "transformers", "tensordict", "hydra-core")
MACHINE = Machine(
    host="a",
    cwd="/home/me",
    versions=dict.fromkeys(NAMES, "1.0") | {"verl": "0.9.1"},
    accelerator="cuda",
    platform=None,
    driver="580.65.06",
    devices=(H100, replace(H100, index=1)),
    memory_free=400 * GIB,
    memory_total=500 * GIB,
    checkpoints=Disk("/shared/run", 900 * GIB, 1000 * GIB),
    ray_disk=Disk("/tmp/ray", 90 * GIB, 100 * GIB),
    shm=Disk("/dev/shm", 64 * GIB, 64 * GIB),
    open_files=65536,
    interface="eth0",
    wandb_key=True,
    models={STUDENT: MODEL, TEACHER: MODEL},
    files={DATA: 500},
)
NODE = Node(id="aa" * 28, address="10.0.0.1", devices=2, free_devices=2, cpus=16, ray_folder="/tmp/ray/session_1")
GOOD = NodeReport(NODE, "a", MACHINE, clock=Clock(0.01, 0.001), asked=1)
NEEDS = Needs(
    n_gpus_per_node=1,
    nnodes=2,
    device="cuda",
    folder="/shared/run",
    teachers={"": TeacherConfig(nnodes=1, n_gpus_per_node=1)},
    models={STUDENT: "/models/student", TEACHER: "/models/teacher"},
    files=(DATA,),
    saves=True,
    checkpoint_bytes=100 * GIB,
    wandb=True,
    memory_share=0.5,
)


def on_b(**changes: Any) -> NodeReport:
    """The second node, with another machine."""
    return replace(GOOD, label="b", machine=replace(MACHINE, host="b", **changes))


def found(b: NodeReport | None = None, **needs: Any) -> list[ClusterProblem]:
    """The problems of two nodes, of which the second may be another."""
    return find_problems(replace(NEEDS, **needs), MACHINE, [GOOD, b or on_b()])


def test_a_cluster_in_order_has_no_problem() -> None:
    assert found() == []
    hub = {STUDENT: ModelFiles(commit="abc"), TEACHER: ModelFiles()}
    both = [replace(GOOD, machine=replace(MACHINE, models=hub)), on_b(models=hub)]
    assert find_problems(NEEDS, replace(MACHINE, models=hub), both) == []


BAD: dict[str, tuple[NodeReport, str, str, str]] = {
    "no answer": (
        replace(GOOD, label="b", failure="no answer within 60 s"),
        "error",
        "within 60 s",
        "ray start --addr",
    ),
    "other torch": (
        on_b(versions={**MACHINE.versions, "torch": "2.0"}),
        *("error", "torch is 2.0, and 1.0 on this machine", "pip install 'torch==1.0'"),
    ),
    "no vllm": (on_b(versions={**MACHINE.versions, "vllm": None}), "error", "vllm is not installed", "'vllm==1.0'"),
    "other hydra": (on_b(versions={**MACHINE.versions, "hydra-core": "1.2"}), "warning", "hydra-core is 1.2", "pip"),
    "the CPU's torch": (on_b(accelerator=None), "error", "torch for CPU", "install torch for its GPUs"),
    "the CPU platform": (on_b(platform="cpu"), "error", "VERL_PLATFORM=cpu", "unset VERL_PLATFORM"),
    "no key of wandb": (on_b(wandb_key=False), "error", "wandb has no key there", "wandb login"),
    "other interface": (on_b(interface=None), "warning", "a: eth0, b: not set", "env_vars.NCCL_SOCKET_IFNAME"),
    "few open files": (on_b(open_files=1024), "warning", "1024 files", "ulimit -n 65536"),
    "fewer devices than Ray counts": (
        on_b(devices=(H100,)),
        "error",
        "Ray counts 2 devices, and nvidia-smi 1",
        "gpus=1",
    ),
    "no device": (on_b(devices=()), "error", "nvidia-smi 0", "repair"),
    "device held": (
        on_b(devices=(H100, replace(H100, index=1, free=20 * GIB, processes=("pid 77 python 60000 MiB",)))),
        *("error", "device 1: 60.0 of 80.0 GiB are in use (pid 77 python 60000 MiB)", "`kill 77`"),
    ),
    "device held a little": (
        on_b(devices=(replace(H100, free=70 * GIB), H100)),
        "warning",
        "device 0: 10.0 of",
        "wait",
    ),
    "a device that need not be the job's is held": (
        on_b(devices=(H100, H100, replace(H100, index=2, free=GIB))),
        *("warning", "device 2: 79.0 of 80.0 GiB", "ray stop"),
    ),
    "ECC errors": (on_b(devices=(replace(H100, ecc_errors=3), H100)), "warning", "3 uncorrected", "--gpu-reset -i 0"),
    "no model": (
        on_b(models={STUDENT: MODEL, TEACHER: ModelFiles(problem="no such model folder")}),
        *("error", f"{TEACHER}=/models/teacher: no such model folder", f"{TEACHER}=/path/on/shared/storage"),
    ),
    "other weights": (
        on_b(models={STUDENT: replace(MODEL, sizes={"model.safetensors": 1, "tokenizer.json": 10}), TEACHER: MODEL}),
        *("error", "model.safetensors (1 bytes) differs", f"{STUDENT}=/path"),
    ),
    "a file less": (
        on_b(models={STUDENT: replace(MODEL, sizes={"model.safetensors": 1000}), TEACHER: MODEL}),
        *("error", "tokenizer.json (no bytes) differs", "copy it"),
    ),
    "other config": (
        on_b(models={STUDENT: replace(MODEL, config="dec0de"), TEACHER: MODEL}),
        *("error", "config.json differs", "copy it"),
    ),
    "no data": (on_b(files={DATA: None}), "error", f"{DATA}: not there (working folder /home/me)", "shared storage"),
    "other data": (on_b(files={DATA: 501}), "error", "501 bytes, and 500 on this machine", "shared storage"),
    "folder of its own": (
        replace(on_b(), unshared="no folder /shared/run"),
        "error",
        "not shared: no folder",
        "default_l",
    ),
    "disk too small": (
        on_b(checkpoints=Disk("/shared/run", 99 * GIB, 1000 * GIB)),
        *("error", "99 GiB free, and a checkpoint takes about 100 GiB", "trainer.default_local_dir=/larger/disk"),
    ),
    "Ray's disk full": (
        on_b(ray_disk=Disk("/tmp", 4 * GIB, 100 * GIB)),
        "error",
        "Ray stores no objects",
        "--temp-dir",
    ),
    "a container's /dev/shm": (
        on_b(shm=Disk("/dev/shm", 0, 2**26)),
        "warning",
        "/dev/shm has 0.0625 GiB",
        "--shm-size",
    ),
    "closed ports": (replace(on_b(), unreachable=("a",)), "error", "a free port of a", "open TCP ports"),
    "clock off": (replace(on_b(), clock=Clock(-2.0, 0.1)), "warning", "-2.0 s off (within 0.1 s)", "chronyc makestep"),
    "clock far off": (replace(on_b(), clock=Clock(90.0, 0.1)), "error", "+90.0 s off", "chronyc makestep"),
}
"""The second node, and the one problem that it makes: severity, part of its text, part of its remedy."""


@pytest.mark.parametrize("case", BAD)
def test_a_problem_of_one_node_is_found_and_no_other(case: str) -> None:
    node, severity, what, remedy = BAD[case]
    (problem,) = found(node)
    assert problem.severity == severity and what in problem.what and remedy in problem.remedy
    assert problem.nodes == (("cluster",) if case == "other interface" else ("b",))


HARMLESS: dict[str, tuple[NodeReport, dict[str, Any]]] = {
    "a clock that may be right": (replace(on_b(), clock=Clock(3.0, 2.5)), {}),
    "folders apart, nothing saved": (replace(on_b(), unshared="no folder"), {"saves": False}),
    "small disk, unknown size": (on_b(checkpoints=Disk("/shared/run", 1, 1)), {"checkpoint_bytes": None}),
    "no key of wandb, offline": (on_b(wandb_key=False), {"wandb": False}),
    "no key of wandb, the job has one": (on_b(wandb_key=False), {"env": frozenset({"WANDB_API_KEY"})}),
    "platform set by the job": (on_b(platform="cpu"), {"env": frozenset({"VERL_PLATFORM"})}),
    "interface set by the job": (on_b(interface=None), {"env": frozenset({"NCCL_SOCKET_IFNAME"})}),
    "open files without limit": (on_b(open_files=-1), {}),
    "the driver's own memory": (on_b(devices=(replace(H100, free=H100.total - 2**29), H100)), {}),
    "a size of Ray that nobody reads": (on_b(), {"ray_init": {"include_dashboard": False}}),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_no_harm_is_not_reported(case: str) -> None:
    node, needs = HARMLESS[case]
    assert found(node, **needs) == []


def test_one_node_of_the_trainer_needs_no_shared_folder_but_should_have_it() -> None:
    apart = replace(on_b(), unshared="no folder /shared/run")
    (problem,) = found(apart, nnodes=1)
    assert problem.severity is Severity.warning
    (problem,) = found(apart, nnodes=1, saves=False, syncs=True)
    assert problem.severity is Severity.error and "the teacher takes the student's weights" in problem.what


def test_too_few_devices_are_refused_with_the_sizes_and_a_remedy() -> None:
    (problem,) = found(n_gpus_per_node=2)
    assert "2 x 2 for the trainer" in problem.what and "[2, 2] free" in problem.what
    assert "lower trainer.n_gpus_per_node or opd.teacher.n_gpus_per_node" in problem.remedy
    (problem,) = found(n_gpus_per_node=2, nnodes=3, teachers={})
    assert "3 x 2 devices for the trainer do not fit nodes with [2, 2] free" in problem.what
    assert found(n_gpus_per_node=2, teachers={}) == []


def test_devices_of_another_job_are_not_free_and_are_named() -> None:
    busy = replace(on_b(), node=replace(NODE, free_devices=0))
    (problem,) = found(busy)
    assert "[2, 0] free" in problem.what and "2 more are another job's (`ray list actors" in problem.what


def test_devices_without_cpus_are_not_enough() -> None:
    """verl's bundles take three CPUs beside each device; Ray would wait for ever."""
    poor = replace(on_b(), node=replace(NODE, cpus=2))
    (problem,) = found(poor)
    assert "3 CPUs beside each device, and the nodes have 16 for 2, 2 for 2" in problem.what


def test_a_node_that_does_not_answer_gives_no_devices() -> None:
    problems = found(replace(GOOD, label="b", machine=None, failure="no answer within 60 s"))
    assert [problem.nodes for problem in problems] == [("b",), ("cluster",)]
    assert "[2] free" in problems[1].what


def test_a_cpu_job_does_not_read_the_gpus() -> None:
    cpu = replace(MACHINE, accelerator=None, devices=())
    nodes = [replace(GOOD, machine=cpu), replace(GOOD, label="b", machine=cpu)]
    assert find_problems(replace(NEEDS, device="cpu"), cpu, nodes) == []
    (problem,) = find_problems(replace(NEEDS, device="cpu"), cpu, [nodes[0], on_b(platform="cuda")])
    assert "VERL_PLATFORM=cuda" in problem.what and "trainer.device=cpu" in problem.what


def test_another_verl_than_the_pinned_one_is_an_error_everywhere() -> None:
    versions = {**MACHINE.versions, "verl": "0.9.0"}
    nodes = [replace(GOOD, machine=replace(MACHINE, versions=versions)), on_b(versions=versions)]
    (problem,) = find_problems(NEEDS, replace(MACHINE, versions=versions), nodes)
    assert problem.nodes == (DRIVER, "a", "b")
    assert "verl is 0.9.0" in problem.what and problem.remedy == "pip install 'verl==0.9.1'"


def test_sizes_that_ray_refuses_on_a_cluster_are_an_error() -> None:
    (problem,) = found(ray_init={"num_cpus": 64, "num_gpus": None})
    assert problem.what.startswith("ray_kwargs.ray_init.num_cpus=64")
    assert problem.remedy == "ray_kwargs.ray_init.num_cpus=null"


def test_another_cached_commit_is_a_warning_with_the_download() -> None:
    hub = {STUDENT: "owner/student"}
    here, there = ({STUDENT: ModelFiles(commit=commit)} for commit in ("a" * 40, "b" * 40))
    nodes = [replace(GOOD, machine=replace(MACHINE, models=there))]
    needs = replace(NEEDS, models=hub, nnodes=1)
    (problem,) = find_problems(needs, replace(MACHINE, models=here), nodes)
    assert problem.severity is Severity.warning and problem.remedy == "`hf download owner/student` there"


def test_what_the_job_would_refuse_is_reported_once() -> None:
    refused = ConfigError(TEACHER, "/models/teacher", "no such model folder", f"{TEACHER}=/path/to/model")
    (problem,) = find_problems(NEEDS, MACHINE, [GOOD, on_b()], [refused])
    assert problem == error(DRIVER, f"{TEACHER}='/models/teacher': no such model folder", f"{TEACHER}=/path/to/model")
    lost = {STUDENT: MODEL, TEACHER: ModelFiles(problem="no such model folder")}
    nodes = [replace(GOOD, machine=replace(MACHINE, models=lost)), on_b(models=lost)]
    (problem,) = find_problems(NEEDS, replace(MACHINE, models=lost), nodes, [refused])
    assert problem.nodes == (DRIVER, "a", "b")


def test_the_same_problem_of_several_nodes_is_one_line_and_errors_come_first() -> None:
    problems = [warning("a", "x", "y"), error("a", "z", "y"), warning("b", "x", "y"), warning("b", "x", "other")]
    assert [(problem.severity.value, problem.nodes, problem.remedy) for problem in merged(problems)] == [
        ("error", ("a",), "y"),
        ("warning", ("a", "b"), "y"),
        ("warning", ("b",), "other"),
    ]
