"""Gives the teacher the student's weights: a snapshot every `opd.teacher.sync_every` steps, on storage of all nodes.

    <trainer.default_local_dir>/opd_teacher/global_step_<n>/model.safetensors
    <trainer.default_local_dir>/opd_teacher/current      path of the snapshot that a restarted replica loads

A checkpoint of step c is resumed with the snapshot of step c - c mod n, so a snapshot is kept as long as a checkpoint
needs it.
"""

import re
import shutil
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

FOLDER, FILE, CURRENT = "opd_teacher", "model.safetensors", "current"
STEP = re.compile(r"global_step_(\d+)")


def snapshot_folder(root: str, step: int) -> Path:
    """The folder of a step's snapshot; `root` is trainer.default_local_dir."""
    return Path(root).absolute() / FOLDER / f"global_step_{step}"


def is_snapshot(path: str | None) -> bool:
    """Whether verl's worker was asked to save into a snapshot's folder and not into a checkpoint's."""
    return path is not None and Path(path).parent.name == FOLDER


def write_snapshot(module: torch.nn.Module, folder: str) -> None:
    """All weights of a sharded model in one file, by Hugging Face names. Every rank calls it; rank 0 writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Collective: every rank must gather, although only rank 0 gets the whole weights, in host memory.
    state = cast(dict[str, torch.Tensor], get_model_state_dict(module, options=options))
    if torch.distributed.get_rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        part = Path(folder) / f"{FILE}.part"
        # Tied weights share memory, which safetensors refuses; clones share none.
        save_file({name: value.clone() for name, value in state.items()}, part)
        part.replace(Path(folder) / FILE)  # atomic: a reader never sees half a file
    torch.distributed.barrier()  # no rank may report the snapshot before the file is there


def load_snapshot(model: torch.nn.Module, folder: str) -> None:
    """Copies a snapshot's weights into the model, in the model's own dtype. Raises if names or shapes differ."""
    model.load_state_dict(load_file(Path(folder) / FILE))


def current_snapshot(pointer: str | None) -> str | None:
    """The folder that the pointer file names; None where there is no pointer."""
    return Path(pointer).read_text() if pointer is not None and Path(pointer).exists() else None


def pointer_file(root: str) -> str:
    """The file that names the current snapshot."""
    return str(Path(root).absolute() / FOLDER / CURRENT)


def point_to(root: str, step: int | None) -> None:
    """Makes a step's snapshot the current one; None: the teacher's own weights."""
    pointer = Path(pointer_file(root))
    if step is None:
        return pointer.unlink(missing_ok=True)
    part = pointer.with_suffix(".part")
    part.write_text(str(snapshot_folder(root, step)))
    part.replace(pointer)  # atomic: a replica that restarts now reads the old path or the new path


def steps_in(folder: Path) -> set[int]:
    """The numbers n of all `global_step_n` in a folder."""
    matches = (STEP.fullmatch(path.name) for path in folder.glob("global_step_*"))
    return {int(match[1]) for match in matches if match}


def prune(root: str, every: int) -> None:
    """Removes snapshots that neither the teacher nor a checkpoint needs any more."""
    folder = Path(root).absolute() / FOLDER
    snapshots = steps_in(folder)
    # verl's max_actor_ckpt_to_keep removes an old checkpoint's `actor` folder and leaves `global_step_n` behind.
    checkpoints = {
        step for step in steps_in(folder.parent) if (folder.parent / f"global_step_{step}" / "actor").exists()
    }
    needed = {step - step % every for step in checkpoints} | {max(snapshots, default=0)}
    for step in snapshots - needed:
        shutil.rmtree(folder / f"global_step_{step}")


class SavingActor(Protocol):
    """verl's group of actor workers. `save_checkpoint` writes a snapshot when its folder is one (`is_snapshot`)."""

    def save_checkpoint(self, folder: str, remote: None, step: int, keep: None, /) -> object:
        """verl's signature: local folder, remote folder, step, checkpoints to keep."""
        ...


@runtime_checkable
class ReloadableTeacher(Protocol):
    """A teacher that can take a snapshot's weights: `TeacherPool`."""

    def reload(self, snapshot: str) -> None:
        """`TeacherPool.reload`."""


class TeacherSync:
    """Gives the teacher the student's weights after every `every`-th step, and the same weights to a resumed run."""

    def __init__(self, every: int, root: str, actor: SavingActor) -> None:
        self.every, self.root, self.actor = every, root, actor

    def resume(self, step: int) -> None:
        """Points the pointer file to the weights that the teacher must hold at `step`, before the teacher loads.

        Raises FileNotFoundError where the snapshot that the checkpoint was trained with is gone.
        """
        last = step - step % self.every
        if last == 0:
            return point_to(self.root, None)
        folder = snapshot_folder(self.root, last)
        if last == step:
            self.actor.save_checkpoint(str(folder), None, step, None)
        elif not (folder / FILE).exists():
            raise FileNotFoundError(
                f"the checkpoint of step {step} was trained with the teacher of step {last}, and {folder / FILE} is "
                "gone: restore it, or resume from a checkpoint whose step is a multiple of "
                f"opd.teacher.sync_every={self.every}"
            )
        point_to(self.root, last)

    def after(self, step: int, teacher: object) -> None:
        """Hands the weights over every `every` steps. Call it after the update, before the step's checkpoint."""
        if step % self.every == 0:
            assert isinstance(teacher, ReloadableTeacher), "checks/several_teachers.py refuses several that are synced"
            folder = str(snapshot_folder(self.root, step))
            self.actor.save_checkpoint(folder, None, step, None)
            point_to(self.root, step)
            teacher.reload(folder)
            prune(self.root, self.every)
