"""Checks of software and settings: the same versions on every node, the right platform, keys and limits."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import CLUSTER, DRIVER, ClusterProblem, error, warning
from opd_verl.nodes.records import Machine, NodeReport, answering

ONLY_DRIVER = ("hydra-core",)
"""Packages that only the driver uses."""
OPEN_FILES = 4096
"""Open files that a process must be allowed: Ray holds a socket for each worker and each object that it moves."""
JOIN = "`ray stop --force; ray start --address=FIRST:6379` there, in the job's Python environment"


def check_answers(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every node answers."""
    for report in reports:
        if report.failure is not None:
            yield error(report.label, report.failure, JOIN)


def check_versions(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every node has the driver's versions, because the processes exchange pickles."""
    for label, _, machine in answering(reports):
        for name, ours in driver.versions.items():
            theirs = machine.versions.get(name)
            if theirs != ours:
                what = f"{name} is {theirs or 'not installed'}, and {ours or 'not installed'} on {DRIVER}"
                remedy = f"pip install '{name}=={ours}'" if ours and name != "python" else f"the same {name} everywhere"
                yield (warning if name in ONLY_DRIVER else error)(label, what, f"{remedy}, then {JOIN}")


def check_verl(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """The installed verl is the version that opd_verl extends."""
    pin = verl_pin()
    machines = {DRIVER: driver} | {label: machine for label, _, machine in answering(reports)}
    for name, machine in machines.items():
        version = machine.versions.get("verl")
        if version and not pin.specifier.contains(version):
            yield error(
                name, f"verl is {version}, and opd_verl is made for verl{pin.specifier}", f"pip install '{pin}'"
            )


def verl_pin() -> Requirement:
    """The requirement on verl in opd_verl's own package metadata."""
    try:
        requirements = [Requirement(text) for text in requires("opd_verl") or []]
    except PackageNotFoundError:
        requirements = []
    return next((r for r in requirements if r.name == "verl" and not r.marker), Requirement("verl"))


def check_platform(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every node has the job's platform: CPU by VERL_PLATFORM=cpu, or because the node's torch has no accelerator."""
    for label, _, machine in answering(reports):
        on_cpu = machine.platform == "cpu" if machine.platform else machine.accelerator is None
        if on_cpu == (needs.device == "cpu") or "VERL_PLATFORM" in needs.env:
            continue
        said = f"VERL_PLATFORM={machine.platform}" if machine.platform else f"torch for {machine.accelerator or 'CPU'}"
        remedy = "`unset VERL_PLATFORM`, install torch for its GPUs"
        if needs.device == "cpu":
            remedy = f"trainer.device={machine.accelerator}, or `export VERL_PLATFORM=cpu`"
        yield error(label, f"{said}, and the job has trainer.device={needs.device}", f"{remedy}, then {JOIN}")


def check_wandb(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every node has a key for wandb: the trainer's process, which logs in, may be on any node."""
    if not needs.wandb or "WANDB_API_KEY" in needs.env:
        return
    for label, _, machine in answering(reports):
        if not machine.wandb_key:
            what = "wandb has no key there (WANDB_API_KEY, ~/.netrc), and trainer.logger has wandb online"
            yield error(label, what, "`wandb login` there, or WANDB_MODE=offline for the job")


def check_interfaces(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """NCCL uses the interface of the same name on every node."""
    interfaces = {label: machine.interface for label, _, machine in answering(reports)}
    if len(set(interfaces.values())) > 1 and "NCCL_SOCKET_IFNAME" not in needs.env:
        said = ", ".join(f"{label}: {value or 'not set'}" for label, value in interfaces.items())
        remedy = "+ray_kwargs.ray_init.runtime_env.env_vars.NCCL_SOCKET_IFNAME=eth0"
        yield warning(CLUSTER, f"NCCL_SOCKET_IFNAME differs ({said})", remedy)


def check_open_files(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """The limit of open files is high enough; a low limit ends a run late, with `Too many open files`."""
    for label, _, machine in answering(reports):
        if 0 <= machine.open_files < OPEN_FILES:
            what = f"a process may open {machine.open_files} files, and Ray may want {OPEN_FILES}"
            yield warning(label, what, f"`ulimit -n 65536`, then {JOIN}")


def check_ray_init(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """`ray.init` gets no sizes of a node: it takes them only where it starts Ray itself."""
    for key in ("num_cpus", "num_gpus"):
        if (value := needs.ray_init.get(key)) is not None:
            what = f"ray_kwargs.ray_init.{key}={value}: Ray refuses it on a cluster that runs"
            yield error(DRIVER, what, f"ray_kwargs.ray_init.{key}=null")


CHECKS = (
    check_answers,
    check_versions,
    check_verl,
    check_platform,
    check_wandb,
    check_interfaces,
    check_open_files,
    check_ray_init,
)
