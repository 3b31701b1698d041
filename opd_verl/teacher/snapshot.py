"""The student's weights as the teacher's: a snapshot every `opd.teacher.sync_every` steps, on storage all nodes share.

    <trainer.default_local_dir>/opd_teacher/global_step_<n>/model.safetensors
    <trainer.default_local_dir>/opd_teacher/current      the snapshot's path; what a restarted replica loads

A checkpoint of step c is resumed with the snapshot of step c - c mod n, so each is kept as long as such a checkpoint.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

FOLDER, FILE, CURRENT = "opd_teacher", "model.safetensors", "current"
STEP = re.compile(r"global_step_(\d+)")


def snapshot_folder(root: str, step: int) -> Path:
    """Where the snapshot of a step lies; `root` is trainer.default_local_dir."""
    return Path(root).absolute() / FOLDER / f"global_step_{step}"


def is_snapshot(path: str | None) -> bool:
    """Whether verl's worker was asked to save into a snapshot's folder and not a checkpoint's."""
    return path is not None and Path(path).parent.name == FOLDER


def write_snapshot(module: torch.nn.Module, folder: str) -> None:
    """All weights of a sharded model in one file, by Hugging Face names. Every rank calls it; rank 0 writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    if torch.distributed.get_rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        part = Path(folder) / f"{FILE}.part"
        save_file({name: value.clone() for name, value in state.items()}, part)  # tied weights share their memory
        part.replace(Path(folder) / FILE)
    torch.distributed.barrier()


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
    part.replace(pointer)


def steps_in(folder: Path) -> set[int]:
    """The n of all `global_step_n` in a folder."""
    found = (STEP.fullmatch(path.name) for path in folder.glob("global_step_*"))
    return {int(match[1]) for match in found if match}


def prune(root: str, every: int) -> None:
    """Removes snapshots that neither the teacher nor a checkpoint needs any more (verl removes old ones' `actor`)."""
    folder = Path(root).absolute() / FOLDER
    there = steps_in(folder)
    checkpoints = {
        step for step in steps_in(folder.parent) if (folder.parent / f"global_step_{step}" / "actor").exists()
    }
    needed = {step - step % every for step in checkpoints} | {max(there, default=0)}
    for step in there - needed:
        shutil.rmtree(folder / f"global_step_{step}")


class TeacherSync:
    """The trainer's side: after every n-th step the teacher takes the student's weights; a resumed run has the same."""

    def __init__(self, every: int, root: str, actor: Any) -> None:
        self.every, self.root, self.actor = every, root, actor

    def resume(self, step: int) -> None:
        """Before the teacher loads: what it must hold at `step`.

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

    def after(self, step: int, teacher: Any) -> None:
        """After the student's update of `step`, and before its checkpoint is written."""
        if step % self.every == 0:
            folder = str(snapshot_folder(self.root, step))
            self.actor.save_checkpoint(folder, None, step, None)
            point_to(self.root, step)
            teacher.reload(folder)
            prune(self.root, self.every)
