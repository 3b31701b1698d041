"""A teacher's actor sees the GPUs that Ray gave it, also where Ray was told to hide none."""

import os
from typing import Any

import pytest
import ray
from gpu_seer import Seer

from opd_verl.teacher.replica.device import NOSET, see_own_gpus_only


def seers(gpus: int, count: int, **env_vars: str) -> list[list[str | None]]:
    remote: Any = ray.remote(Seer)
    handles = [
        remote.options(num_gpus=gpus, num_cpus=0, runtime_env={"env_vars": env_vars}).remote() for _ in range(count)
    ]
    actual = ray.get([handle.seen.remote() for handle in handles])
    for handle in handles:
        ray.kill(handle)
    return actual


def test_every_actor_sees_its_own_gpus(cluster: None) -> None:
    rows_seen = seers(1, 3, **{NOSET: "1"})
    assert all(after == own for _, after, own in rows_seen) and len({own for _, _, own in rows_seen}) == 3
    assert all(before is None for before, _, _ in rows_seen), "Ray did nothing"


def test_where_ray_hides_the_others_nothing_changes(cluster: None) -> None:
    assert all(before == after == own for before, after, own in seers(1, 2))
    assert [row[:2] for row in seers(0, 1, **{NOSET: "1", "CUDA_VISIBLE_DEVICES": "7"})] == [["7", "7"]]


def test_outside_of_ray_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOSET, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    see_own_gpus_only()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
