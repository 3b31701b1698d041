"""The student's weights as the teacher's: written by every rank, found again after a stop, taken without a mix-up."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pool_harness import LIMIT, REQUESTS, VOCAB, K, ask, settings_for
from safetensors.torch import save_model
from scorer_harness import reference
from tiny_models import save_tiny_qwen3, tiny_qwen3
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.snapshot import (
    FILE,
    FOLDER,
    TeacherSync,
    current_snapshot,
    is_snapshot,
    load_snapshot,
    point_to,
    pointer_file,
    snapshot_folder,
    write_snapshot,
)


@pytest.fixture
def one_rank() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_students_weights_arrive_in_another_model(one_rank: None, tmp_path: Path, tied: bool) -> None:
    student = tiny_qwen3(VOCAB, seed=1, tie_word_embeddings=tied)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    mesh = init_device_mesh("cpu", (1,))
    for layer in student.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    write_snapshot(student, str(tmp_path / "s"))
    assert [path.name for path in (tmp_path / "s").iterdir()] == [FILE]
    teacher = tiny_qwen3(VOCAB, seed=2, tie_word_embeddings=tied).bfloat16()
    load_snapshot(teacher, str(tmp_path / "s"))
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in teacher.state_dict().items())


class Student:
    """verl's worker group as far as snapshots go; notes what it was asked to save."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def save_checkpoint(self, path: str, *_: Any) -> None:
        assert is_snapshot(path)
        self.saved.append(Path(path).name)
        Path(path).mkdir(parents=True)
        (Path(path) / FILE).write_text("")


class Teacher:
    def __init__(self) -> None:
        self.taken: list[str] = []

    def reload(self, folder: str) -> None:
        self.taken.append(folder)


def test_a_snapshot_every_n_steps_and_none_longer_than_needed(tmp_path: Path) -> None:
    root, student, teacher = str(tmp_path), Student(), Teacher()
    (tmp_path / "global_step_10").mkdir()  # verl took the actor out of this checkpoint
    sync = TeacherSync(3, root, student)
    sync.resume(0)
    assert current_snapshot(pointer_file(root)) is None
    for step in range(1, 13):
        sync.after(step, teacher)
        if step % 4 == 0:
            (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    assert student.saved == ["global_step_3", "global_step_6", "global_step_9", "global_step_12"]
    assert teacher.taken == [str(snapshot_folder(root, step)) for step in (3, 6, 9, 12)]
    kept = {path.name for path in (tmp_path / FOLDER).glob("global_step_*")}
    assert kept == {"global_step_3", "global_step_6", "global_step_12"}, "checkpoints 4 and 8 need 3 and 6"
    assert current_snapshot(pointer_file(root)) == teacher.taken[-1]


def test_a_resumed_run_has_the_teacher_of_its_checkpoint(tmp_path: Path) -> None:
    root, student = str(tmp_path), Student()
    sync = TeacherSync(3, root, student)
    (tmp_path / "global_step_5" / "actor").mkdir(parents=True)
    for step in (3, 6):
        sync.after(step, Teacher())
    sync.resume(5)
    assert current_snapshot(pointer_file(root)) == str(snapshot_folder(root, 3)) and student.saved[2:] == []
    sync.resume(9)
    assert student.saved[2:] == ["global_step_9"], "the student was just loaded: its weights are the snapshot"
    sync.resume(2)
    assert current_snapshot(pointer_file(root)) is None
    with pytest.raises(FileNotFoundError, match=r"teacher of step 12.*sync_every=3"):
        sync.resume(13)


def test_a_teacher_takes_new_weights_and_forgets_the_old_scores(tmp_path: Path) -> None:
    path = save_tiny_qwen3(tmp_path / "model", VOCAB, LIMIT)
    pointer, newer = pointer_file(str(tmp_path)), tiny_qwen3(VOCAB, seed=5)
    settings = settings_for(path, weights_pointer=pointer)
    actor = TeacherActor(settings)
    before = ask(actor, REQUESTS, 1, topk=K)
    folder = snapshot_folder(str(tmp_path), 4)
    folder.mkdir(parents=True)
    save_model(newer, str(folder / FILE))
    actor.reload(str(folder))
    assert actor.stats()["state_bytes"] == 0
    after = ask(actor, REQUESTS, 1, topk=K)
    point_to(str(tmp_path), 4)
    restarted = ask(TeacherActor(settings), REQUESTS, 1, topk=K)
    for asked, old, new, again in zip(REQUESTS, before, after, restarted, strict=True):
        sampled = torch.tensor(asked.response_ids).long()[:, None]
        expected = reference(newer, asked, LIMIT).gather(1, sampled)[:, 0]
        for score in (new, again):
            torch.testing.assert_close(score.log_q.double(), expected, rtol=1e-4, atol=1e-4)
        assert not len(asked.response_ids) or not torch.allclose(old.log_q, new.log_q)


def test_only_folders_of_ours_are_snapshots() -> None:
    assert is_snapshot(os.path.join("x", FOLDER, "global_step_1"))
    assert not is_snapshot("x/global_step_1/actor") and not is_snapshot(None)
