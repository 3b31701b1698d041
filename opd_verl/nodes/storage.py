"""Checks of files and disks: the same models and data everywhere, one folder of checkpoints, enough space."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from opd_verl.checks.accepted import gib
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import DRIVER, ClusterProblem, error, warning
from opd_verl.nodes.records import GIB, Machine, ModelFiles, NodeReport, answering

RAY_FULL = 0.05
"""Share of free space below which Ray writes no more objects to its disk."""
SHM = GIB
"""Bytes of /dev/shm that NCCL and Ray's objects need at least; containers have 64 MiB by default."""


def check_models(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every machine can load the student and the teachers, from the same files as the driver."""
    for key, path in needs.models.items():
        ours = driver.models[key]
        remedy = f"{key}=/path/on/shared/storage, or copy it to the same path of every node"
        if "/" in path and not Path(path).is_absolute():
            remedy = f"{key}=/path/on/shared/storage, or `hf download {path}` there"
        if ours.problem is not None:
            yield error(DRIVER, f"{key}={path}: {ours.problem}", remedy)
        for label, _, machine in answering(reports):
            theirs = machine.models[key]
            if theirs.problem is not None:
                yield error(label, f"{key}={path}: {theirs.problem}", remedy)
            elif ours.problem is None and (other := difference(theirs, ours)):
                yield error(label, f"{key}={path}: {other} differs from {DRIVER}'s", remedy)
            elif theirs.commit and ours.commit and theirs.commit != ours.commit:
                what = f"{key}={path}: commit {theirs.commit[:8]} is cached, and {ours.commit[:8]} on {DRIVER}"
                yield warning(label, what, f"`hf download {path}` there")


def difference(theirs: ModelFiles, ours: ModelFiles) -> str | None:
    """The first file that differs between two machines; None where all are the same."""
    if theirs.config != ours.config:
        return "config.json"
    # Sizes stand for contents: reading the weights of a large model on every node would take minutes.
    sizes, expected = theirs.sizes or {}, ours.sizes or {}
    other = next((name for name in sorted({*sizes, *expected}) if sizes.get(name) != expected.get(name)), None)
    return other and f"{other} ({sizes.get(other, 'no')} bytes)"


def check_data(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Every machine has the data files: the trainer's process, which reads them, may be on any node."""
    remedy = "a path on shared storage, or copy it to the same path of every node"
    for path in needs.files:
        ours = driver.files[path]
        if ours is None:
            yield error(DRIVER, f"data file {path}: not there", "data.train_files=/path/to/train.parquet")
        for label, _, machine in answering(reports):
            theirs = machine.files[path]
            if theirs is None:
                yield error(label, f"data file {path}: not there (working folder {machine.cwd})", remedy)
            elif ours is not None and theirs != ours:
                yield error(label, f"data file {path}: {theirs} bytes, and {ours} on {DRIVER}", remedy)


def check_shared(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """All nodes share the folder of the checkpoints: each rank writes a part, and any node may read it in a resume."""
    if not needs.saves and not needs.syncs:
        return
    needed = needs.nnodes > 1 or needs.syncs
    for label, report, _ in answering(reports):
        if report.unshared is not None:
            reader = (
                "the teacher takes the student's weights from there" if needs.syncs else "a resumed run reads it whole"
            )
            what = f"trainer.default_local_dir is not shared: {report.unshared}; {reader}"
            yield (error if needed else warning)(label, what, "trainer.default_local_dir=/path/on/shared/storage")


def check_disks(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[ClusterProblem]:
    """Disks have room for one checkpoint, and for Ray's objects that do not fit memory."""
    for label, _, machine in answering(reports):
        disk, size = machine.checkpoints, needs.checkpoint_bytes
        if size is not None and disk.free < size:
            what = f"{disk.path} has {gib(disk.free)} free, and a checkpoint takes about {gib(size)}"
            yield error(label, what, "trainer.default_local_dir=/larger/disk, or delete there")
        ray = machine.ray_disk
        if ray is not None and ray.free < RAY_FULL * ray.total:
            what = (
                f"{ray.path} (Ray's) has {gib(ray.free)} of {gib(ray.total)} free; below 5% Ray stores no objects there"
            )
            yield error(label, what, "delete there, or `ray start --temp-dir=/larger/disk` on the first node")
        if machine.shm is not None and machine.shm.total < SHM:
            what = f"/dev/shm has {gib(machine.shm.total)}"
            yield warning(label, what, "`docker run --shm-size=64g`, or `mount -o remount,size=64g /dev/shm`")


CHECKS = (check_models, check_data, check_shared, check_disks)
