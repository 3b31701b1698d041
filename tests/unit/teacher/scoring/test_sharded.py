"""A replica of two shards on a local Ray, over gloo: it scores as a whole model does, and survives its shards."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pool_harness import AT_IDS, REQUESTS, settings_for
from ray.util.placement_group import placement_group
from safetensors.torch import save_file
from scorer_harness import CLOSE, LIMIT, MIXED, VOCAB, reference, request
from tiny_models import save_tiny_qwen3, tiny_qwen3, tiny_tokenizer
from torch.distributed.tensor import DTensor

from opd_verl.checks.teacher import check_shards, check_teacher
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import TeacherConfig
from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.client.start import replica_count
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.replica.followers import _await_load
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.scoring import sharded
from opd_verl.teacher.scoring.batching import batch_rows
from opd_verl.teacher.scoring.reader import ModelSpec
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.shard_reader import ShardedReader, follow, split

SHARDED = settings_for("model", shards=2)
ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_qwen3(tmp_path_factory.mktemp("teacher"), VOCAB, LIMIT)


@pytest.fixture(scope="module")
def pool(cluster: None, model_path: str) -> TeacherPool:
    """One replica on the two bundles of a placement group."""
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_PACK")
    places = [(group, 0), (group, 1)]
    return TeacherPool.start(
        settings_for(model_path, shards=2), 1, name_prefix="s", placement_groups=places, env_vars=ENV
    )


def processes(title: str) -> set[int]:
    """Pids of the Ray workers that this test session started and that run an actor's class."""
    workers = psutil.Process().children(recursive=True)
    return {worker.pid for worker in workers if any(f"ray::{title}" in part for part in worker.cmdline()[:1])}


def assert_right(model: Any, requests: list[ScoreRequest], scores: list[TeacherScore], close: Any = CLOSE) -> None:
    """Sampled log q and entropy against the float64 forward pass."""
    for asked, score in zip(requests, scores, strict=True):
        log_probs = reference(model, asked, LIMIT)
        sampled = torch.tensor(asked.response_ids).long()[:, None]
        assert score.valid.all() and score.length == len(asked.response_ids) and score.entropy is not None
        torch.testing.assert_close(score.log_q.double(), log_probs.gather(1, sampled)[:, 0], **close)
        torch.testing.assert_close(score.entropy.double(), -(log_probs.exp() * log_probs).sum(-1), **close)


# Which rank reads what


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 4), st.booleans(), st.integers(1, 200))
def test_parts_are_even_and_as_large_as_the_budget_of_their_plan(
    lengths: list[int], ranks: int, padded: bool, budget: int
) -> None:
    def cost(fed: list[int]) -> int:
        return len(fed) * max(fed) if padded else sum(fed)

    parts = split(lengths, ranks, padded)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert len(parts) <= ranks and all(parts)
    worst = max(cost([lengths[index] for index in part]) for part in parts)
    assert worst == max(lengths) or len(batch_rows(lengths, worst - 1, padded)) > ranks, "no part could be smaller"
    batches = batch_rows(lengths, budget, padded)
    for first in range(0, len(batches), ranks):
        together = [lengths[index] for batch in batches[first : first + ranks] for index in batch]
        for part in split(together, ranks, padded):
            assert cost([together[index] for index in part]) <= max(budget, *together)


def test_long_rows_that_fill_a_device_are_read_together_and_one_goes_alone() -> None:
    class TwoDevices:
        packs, may_share, ranks = False, False, 2

    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT, max_tokens_per_batch=60)
    scorer.reader = TwoDevices()  # type: ignore[assignment]
    requests = [request(f"k{length}", 1, length) for length in (50, 49, 48, 20, 20, 20)]
    assert scorer.batches(requests) == [[0, 1], [2, 3, 4, 5]]
    assert split([48, 20, 20, 20], 2, padded=True) == [[0], [1, 2, 3]]


# What a shard holds


@pytest.fixture(scope="module")
def ranks(cluster: None) -> list[Any]:
    """Two processes in one group. A class in a function travels to them by value, without what this file imports."""

    class Rank:
        """One rank of a process group, loading model after model."""

        def port(self) -> int:
            self.store = sharded.open_store(2)
            return self.store.port

        def join(self, rank: int, port: int) -> None:
            store = self.store if rank == 0 else sharded.find_store(port, 2)
            sharded.init_group(rank, 2, store, "cpu")

        def load(self, path: str, dtype: str) -> dict[str, Any]:
            """Elements held of each parameter, whole parameters, buffers, and whether the head is the embeddings."""
            model = sharded.load_sharded(ModelSpec(path, dtype, "cpu", "sdpa", False))
            named = dict(model.named_parameters(remove_duplicate=False))
            return {
                "held": {k: p.to_local().numel() if isinstance(p, DTensor) else p.numel() for k, p in named.items()},
                "whole": {k: p.full_tensor() if isinstance(p, DTensor) else p.data for k, p in named.items()},
                "buffers": dict(model.named_buffers()),
                "tied": model.lm_head.weight is model.model.embed_tokens.weight,
                "needs": model.training or any(p.requires_grad for p in named.values()),
            }

        def follow(self) -> None:
            follow()

        def score(self, path: str, requests: list[ScoreRequest]) -> tuple[list[Any], int]:
            scorer = Scorer.from_pretrained(path, vocab_limit=LIMIT, device="cpu", load=ShardedReader.load)
            return scorer.score_batch(requests), dist.get_world_size()

    remote: Any = ray.remote(Rank)
    actors = [remote.options(runtime_env={"env_vars": ENV}).remote() for _ in range(2)]
    port = ray.get(actors[0].port.remote())
    ray.get([actor.join.remote(rank, port) for rank, actor in enumerate(actors)])
    return actors


def save(path: Path, model: Any) -> str:
    model.save_pretrained(path)
    tiny_tokenizer(LIMIT).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(("tied", "dtype"), [(False, "float32"), (True, "float32"), (True, "auto")])
def test_each_shard_holds_half_of_the_layers_and_the_model_is_the_checkpoint(
    ranks: list[Any], tmp_path: Path, tied: bool, dtype: str
) -> None:
    model: Any = tiny_qwen3(VOCAB, tie_word_embeddings=tied)
    model = model.bfloat16() if dtype == "auto" else model
    path = save(tmp_path, model)
    actual: list[Any] = ray.get([actor.load.remote(path, dtype) for actor in ranks])
    expected = dict(Scorer.from_pretrained(path, dtype=dtype, device="cpu").model.named_parameters())
    for name, weight in expected.items():
        held = [shard["held"][name] for shard in actual]
        assert held == ([weight.numel() / 2] * 2 if ".layers." in name else [weight.numel()] * 2), name
        for shard in actual:
            assert shard["whole"][name].dtype == weight.dtype and torch.equal(shard["whole"][name], weight.data), name
    for shard in actual:
        assert shard["tied"] == tied and not shard["needs"]
        for name, buffer in tiny_qwen3(VOCAB).named_buffers():
            assert shard["buffers"][name].dtype == torch.float32, "rotary angles stay float32 in a bf16 model"
            torch.testing.assert_close(shard["buffers"][name], buffer)


def test_tied_embeddings_score_as_in_float64_in_whatever_order_they_are_read(ranks: list[Any], tmp_path: Path) -> None:
    model = tiny_qwen3(VOCAB, seed=4, tie_word_embeddings=True)
    ranks[1].follow.remote()
    states, world = ray.get(ranks[0].score.remote(save(tmp_path, model), MIXED))
    assert world == 2
    assert_right(model, MIXED, [TeacherScore(s.log_q, s.log_q == s.log_q, s.entropy) for s in states])


# A replica of the pool


@pytest.mark.parametrize(
    "requests",
    [REQUESTS, MIXED, MIXED[:1], [request("a_0", 4, 1)], [request("b_0", 4, 0)], [request("c_0", 1, 3)] * 2],
    ids=["many", "mixed", "fewer_than_ranks", "one_token", "empty", "twice"],
)
def test_a_sharded_replica_scores_as_the_float64_forward_pass(pool: TeacherPool, requests: list[ScoreRequest]) -> None:
    model = tiny_qwen3(VOCAB)
    at_ids = [np.random.default_rng(i).integers(0, LIMIT, (len(r.response_ids), 3)) for i, r in enumerate(requests)]
    scores = pool.collect(requests, at_ids, CollectSpec(1, topk=4, hidden=True))
    assert_right(model, requests, scores)
    head = pool.lm_head()
    for asked, ids, score in zip(requests, at_ids, scores, strict=True):
        log_probs = reference(model, asked, LIMIT)
        top = log_probs.topk(4)
        assert score.topk_ids is not None and torch.equal(score.topk_ids.long(), top.indices)
        assert score.topk_log_q is not None and score.at_ids_log_q is not None and score.hidden is not None
        torch.testing.assert_close(score.topk_log_q.double(), top.values, **CLOSE)
        torch.testing.assert_close(score.at_ids_log_q.double(), log_probs.gather(1, torch.tensor(ids)), **CLOSE)
        torch.testing.assert_close(head.logits(score.hidden).log_softmax(-1).double(), log_probs, **CLOSE)


@pytest.mark.parametrize("victim", ["ShardFollower", "TeacherActor"])
def test_a_shard_killed_during_collect_is_survived(pool: TeacherPool, victim: str) -> None:
    """The follower is stopped, so that the leader waits inside the forward pass when one of them dies."""
    before = {title: processes(title) for title in ("ShardFollower", "TeacherActor")}
    assert all(len(pids) == 1 for pids in before.values()), before
    retried = pool.retried
    os.kill(next(iter(before["ShardFollower"])), signal.SIGSTOP)
    timer = threading.Timer(1.0, os.kill, (*before[victim], signal.SIGKILL))
    timer.start()
    requests = [replace(asked, key=f"{victim}_{asked.key}") for asked in REQUESTS]
    scores = pool.collect(requests, AT_IDS, CollectSpec(2))
    timer.join()
    assert_right(tiny_qwen3(VOCAB), requests, scores)
    assert pool.retried - retried == len(REQUESTS)
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pids in before.values() for pid in pids):
        assert time.monotonic() < deadline, "the old shards are gone, also the one that is stopped"
        time.sleep(0.1)
    assert len(processes("ShardFollower")) == 1 == len(processes("TeacherActor"))


def test_a_sharded_replica_takes_new_weights(pool: TeacherPool, tmp_path: Path) -> None:
    other = tiny_qwen3(VOCAB, seed=9)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    pool.reload(str(tmp_path))
    assert_right(other, REQUESTS, pool.collect(REQUESTS, None, CollectSpec(3)))
    assert torch.equal(pool.lm_head().weight, other.lm_head.weight[:LIMIT])


@pytest.mark.by_hand
def test_a_follower_that_hangs_is_survived_and_the_next_life_has_the_newest_weights(
    pool: TeacherPool, model_path: str, tmp_path: Path
) -> None:
    newest = tiny_qwen3(VOCAB, seed=9)
    save_file(newest.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "current").write_text(str(tmp_path))
    pointer, others = str(tmp_path / "current"), processes("ShardFollower")
    settings = settings_for(model_path, shards=2, weights_pointer=pointer, timeout_s=40.0)
    hung = TeacherPool.start(settings, 1, name_prefix="h", num_cpus=0, env_vars=ENV)
    os.kill(*(processes("ShardFollower") - others), signal.SIGSTOP)
    assert_right(newest, REQUESTS, hung.collect(REQUESTS, None, CollectSpec(1)))
    assert hung.restarted == 1, "it was silent, not gone"
    assert_right(newest, MIXED, hung.collect(MIXED, None, CollectSpec(2)))
    ray.kill(hung.replicas[0])


# What cannot be


def test_a_failed_load_names_its_cause(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)nowhere did not load on 1 replicas.*nowhere"):
        TeacherPool.start(settings_for(str(tmp_path / "nowhere"), shards=2, load_timeout_s=60.0), 1, name_prefix="bad")


def test_an_error_in_a_follower_ends_the_load(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    def serve() -> None:
        raise RuntimeError("no room on the device")

    with pytest.raises(RuntimeError, match="no room on the device"):
        _await_load(Future(), [serve.remote()])


def test_shards_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="0 followers; a replica of 2 shards has 1"):
        TeacherActor(SHARDED)
    with pytest.raises(ValueError, match="for each of their 2 shards"):
        TeacherPool.start(SHARDED, 2, placement_groups=[])
    nothing = OmegaConf.create()
    for devices, shards in ((3, 2), (2, 4)):
        with pytest.raises(ConfigError, match=rf"opd\.teacher\.shards={shards}.*not a multiple.*n_gpus_per_node=4"):
            check_shards(nothing, OpdConfig(TeacherConfig("t", n_gpus_per_node=devices, shards=shards)))
    with pytest.raises(ConfigError, match=r"opd\.teacher\.shards=0.*must be positive"):
        check_teacher(nothing, OpdConfig(TeacherConfig("t", shards=0)))
    teacher = TeacherConfig("t", nnodes=2, n_gpus_per_node=4, shards=2)
    check_shards(nothing, OpdConfig(teacher))
    assert replica_count(teacher) == 4
