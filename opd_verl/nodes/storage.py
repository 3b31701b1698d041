"""Checks of files and disks: models and data are the driver's, checkpoints come together and fit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from opd_verl.checks.accepted import gib
from opd_verl.nodes.needs import Needs
from opd_verl.nodes.problems import DRIVER, Problem, error, warning
from opd_verl.nodes.records import GIB, Machine, ModelFiles, NodeReport, answering

RAY_FULL = 0.05
"""Share of free space below which Ray writes no more objects to its disk."""
SHM = GIB
"""Bytes of /dev/shm that NCCL and Ray's objects need at the least; containers have 64 MiB unless told otherwise."""


def check_models(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[Problem]:
    """Every machine can load the student and the teachers, and the same ones."""
    for key, path in needs.models.items():
        here = driver.models[key]
        remedy = f"{key}=/path/on/shared/storage, or copy it to the same path of every node"
        if "/" in path and not Path(path).is_absolute():
            remedy = f"{key}=/path/on/shared/storage, or `hf download {path}` there"
        if here.problem is not None:
            yield error(DRIVER, f"{key}={path}: {here.problem}", remedy)
        for label, _, machine in answering(reports):
            there = machine.models[key]
            if there.problem is not None:
                yield error(label, f"{key}={path}: {there.problem}", remedy)
            elif here.problem is None and (other := difference(there, here)):
                yield error(label, f"{key}={path}: {other} differs from {DRIVER}'s", remedy)
            elif there.commit and here.commit and there.commit != here.commit:
                what = f"{key}={path}: commit {there.commit[:8]} is cached, and {here.commit[:8]} on {DRIVER}"
                yield warning(label, what, f"`hf download {path}` there")


def difference(there: ModelFiles, here: ModelFiles) -> str | None:
    """The first file that two machines do not have in common."""
    if there.config != here.config:
        return "config.json"
    sizes, ours = there.sizes or {}, here.sizes or {}
    other = next((name for name in sorted({*sizes, *ours}) if sizes.get(name) != ours.get(name)), None)
    return other and f"{other} ({sizes.get(other, 'no')} bytes)"


def check_data(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[Problem]:
    """The trainer's process reads the data, on whatever node it is."""
    remedy = "a path on shared storage, or copy it to the same path of every node"
    for path in needs.files:
        here = driver.files[path]
        if here is None:
            yield error(DRIVER, f"data file {path}: not there", "data.train_files=/path/to/train.parquet")
        for label, _, machine in answering(reports):
            there = machine.files[path]
            if there is None:
                yield error(label, f"data file {path}: not there (working folder {machine.cwd})", remedy)
            elif here is not None and there != here:
                yield error(label, f"data file {path}: {there} bytes, and {here} on {DRIVER}", remedy)


def check_shared(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[Problem]:
    """A checkpoint's parts are read together again, by ranks and by the trainer's process, wherever they are then."""
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


def check_disks(needs: Needs, driver: Machine, reports: Sequence[NodeReport]) -> Iterator[Problem]:
    """One checkpoint fits where it is written, and Ray has room for objects that do not fit memory."""
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
