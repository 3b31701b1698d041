"""The teacher's actor as a plain object and its pool on a local Ray: right scores, always an answer, no invention."""

import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from canned_replica import CannedReplica, FragileReplica
from hypothesis import given
from hypothesis import strategies as st
from pool_harness import (
    AT_IDS,
    CLOSE,
    LIMIT,
    REQUESTS,
    VOCAB,
    all_zero,
    ask,
    assert_right,
    item,
    settings_for,
)
from ray.exceptions import RayActorError
from scorer_harness import reference, request
from tiny_models import save_tiny_qwen3, tiny_qwen3

from opd_verl.fused.head import LMHead
from opd_verl.teacher.client import gather
from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.wire import decode, encode


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_qwen3(tmp_path_factory.mktemp("teacher"), VOCAB, LIMIT)


@pytest.fixture
def actor(model_path: str) -> TeacherActor:
    return TeacherActor(settings_for(model_path))


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


# One replica, no Ray


def test_scores_what_was_submitted_before_anyone_collects(actor: TeacherActor) -> None:
    actor.submit([item(r) for r in REQUESTS], step=1)
    wait_for(lambda: actor.stats()["queue_length"] == 0)
    before = actor.stats()
    assert before["tokens_scored"] == sum(len(r.response_ids) for r in REQUESTS) and before["seconds_busy"] > 0
    assert_right(ask(actor, REQUESTS, step=1))
    assert actor.stats()["batches"] == before["batches"], "nothing was scored twice"


def test_collect_scores_what_was_never_submitted_in_the_order_asked(actor: TeacherActor) -> None:
    answers = actor.collect([(*item(r), ids) for r, ids in zip(REQUESTS, AT_IDS, strict=True)], CollectSpec(1, topk=2))
    assert [decode(data)[:2] for data in answers] == [(r.key, r.checksum) for r in REQUESTS]
    scores = [decode(data)[2] for data in answers]
    assert_right(scores, AT_IDS)
    for asked, score in zip(REQUESTS, scores, strict=True):
        assert score.topk_ids is not None and score.topk_ids.shape == (len(asked.response_ids), 2)
        top = reference(tiny_qwen3(VOCAB), asked, LIMIT).topk(2)
        assert torch.equal(score.topk_ids.long(), top.indices)


def test_in_a_step_that_the_diagnostics_look_at_it_keeps_more(model_path: str) -> None:
    plain = settings_for(model_path, topk=0, keep_hidden=False, look_every=3, look_topk=2)
    actor = TeacherActor(plain)
    questions = [(*item(r), ids) for r, ids in zip(REQUESTS, AT_IDS, strict=True)]
    for step in (2, 4):
        with pytest.raises(ValueError, match="top-2 asked of a teacher that keeps top-0"):
            actor.collect(questions, CollectSpec(step, topk=2))
    actor.submit([item(r) for r in REQUESTS], step=3)
    scores = [decode(data)[2] for data in actor.collect(questions, CollectSpec(3, topk=2))]
    assert_right(scores, AT_IDS)
    for asked, score in zip(REQUESTS, scores, strict=True):
        assert score.topk_ids is not None
        assert torch.equal(score.topk_ids.long(), reference(tiny_qwen3(VOCAB), asked, LIMIT).topk(2).indices)
    assert actor.stats()["tokens_scored"] == sum(len(r.response_ids) for r in REQUESTS), "scored once"
    with pytest.raises(ValueError, match="top-3 asked of a teacher that keeps top-2"):
        actor.collect(questions, CollectSpec(3, topk=3))
    ask(actor, [request("later_0", 4, 6)], step=4)
    assert [job.future.result().hidden.numel() for job in actor.store.done.values()] == [0], "and only then"


def test_a_rollout_that_was_scored_without_the_look_is_scored_again_for_it(model_path: str) -> None:
    actor = TeacherActor(settings_for(model_path, topk=0, keep_hidden=False, look_every=3, look_topk=2))
    actor.submit([item(REQUESTS[-1])], step=2)
    wait_for(lambda: actor.stats()["queue_length"] == 0)
    assert ask(actor, REQUESTS[-1:], step=3, topk=2)[0].topk_ids is not None
    assert actor.stats()["tokens_scored"] == 2 * len(REQUESTS[-1].response_ids)


def test_only_what_is_asked_is_shipped(actor: TeacherActor) -> None:
    score = ask(actor, REQUESTS[-1:], 1, entropy=False)[0]
    assert (score.entropy, score.topk_ids, score.topk_log_q, score.at_ids_log_q) == (None, None, None, None)


def test_submit_is_idempotent_and_other_tokens_replace(actor: TeacherActor) -> None:
    old, new = request("k_0", 4, 10, seed=1), request("k_0", 4, 10, seed=2)
    for _ in range(3):
        actor.submit([item(old)], step=1)
        wait_for(lambda: actor.stats()["queue_length"] == 0)
    assert actor.stats()["tokens_scored"] == 10
    score = ask(actor, [new], step=1)[0]
    expected = reference(tiny_qwen3(VOCAB), new, LIMIT).gather(1, torch.tensor(new.response_ids).long()[:, None])
    torch.testing.assert_close(score.log_q.double(), expected[:, 0], **CLOSE)
    assert len(actor.store.done) == 1


def test_the_same_rollout_asked_twice_in_one_collect(actor: TeacherActor) -> None:
    first, second = ask(actor, [REQUESTS[-1], REQUESTS[-1]], step=1)
    assert torch.equal(first.log_q, second.log_q)
    assert actor.stats()["tokens_scored"] == len(REQUESTS[-1].response_ids)


def test_a_later_step_closes_the_earlier_ones(actor: TeacherActor) -> None:
    ask(actor, REQUESTS, step=1)
    late = request("late_0", 4, 6)
    actor.submit([item(late)], step=2)
    ask(actor, [late, REQUESTS[1]], step=2)
    assert set(actor.store.done) == {"late_0", REQUESTS[1].key}
    assert actor.stats()["state_bytes"] == sum(job.future.result().nbytes for job in actor.store.done.values())


@pytest.mark.parametrize("max_state_bytes", [0, 5000])
def test_evicted_states_are_recomputed(model_path: str, max_state_bytes: int) -> None:
    small = TeacherActor(settings_for(model_path, topk=0, max_state_gib=max_state_bytes / 2**30))
    small.submit([item(r) for r in REQUESTS], step=1)
    wait_for(lambda: small.stats()["queue_length"] == 0)
    assert small.stats()["state_bytes"] <= max_state_bytes
    answers = small.collect([(*item(r), ids) for r, ids in zip(REQUESTS, AT_IDS, strict=True)], CollectSpec(1))
    assert_right([decode(data)[2] for data in answers], AT_IDS)
    assert small.stats()["state_bytes"] <= max_state_bytes


def test_an_exception_in_the_loop_reaches_every_waiter_and_the_loop_lives(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> None:
        time.sleep(0.05)
        raise RuntimeError("out of memory, say")

    told: list[list[bytes | str]] = []

    def collect() -> None:
        told.append(actor.collect([(*item(r), None) for r in REQUESTS], CollectSpec(1)))

    with monkeypatch.context() as patch:
        patch.setattr(actor.scorer, "score_batch", explode)
        waiters = [threading.Thread(target=collect) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join(timeout=30)
        assert told == [[f"{r.key}: RuntimeError: out of memory, say" for r in REQUESTS]] * 3
        wait_for(lambda: actor.stats()["queue_length"] == 0)
    assert_right(ask(actor, REQUESTS, 1))


def test_a_batch_that_fails_is_halved_until_what_can_be_scored_is(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, bad, sizes = actor.scorer.score_batch, REQUESTS[6].key, []

    def small_memory(requests: list[ScoreRequest], *args: Any) -> Any:
        sizes.append(len(requests))
        if len(requests) > 2 or bad in [r.key for r in requests]:
            raise RuntimeError("does not fit")
        return original(requests, *args)

    monkeypatch.setattr(actor.scorer, "score_batch", small_memory)
    answers = actor.collect([(*item(r), None) for r in REQUESTS], CollectSpec(1))
    assert max(sizes) > 2 and [i for i, answer in enumerate(answers) if isinstance(answer, str)] == [6]
    monkeypatch.undo()
    assert_right(ask(actor, REQUESTS, 1))


def test_a_full_queue_turns_early_submissions_away_and_collect_asks_again(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = TeacherActor(settings_for(model_path, max_queued=3))
    gate, original = threading.Event(), actor.scorer.score_batch
    monkeypatch.setattr(actor.scorer, "score_batch", lambda *args: gate.wait(30) and original(*args))
    actor.submit([item(REQUESTS[0])], 1)
    wait_for(lambda: actor.store.running)
    assert actor.submit([item(r) for r in REQUESTS[1:3]], 1) == 2
    assert actor.submit([item(r) for r in REQUESTS[3:]], 1) == 3 == actor.submit([item(r) for r in REQUESTS[3:]], 1)
    gate.set()
    assert_right(ask(actor, REQUESTS, 1))


@pytest.mark.parametrize("first", [0, 2, 5])
def test_without_early_scoring_the_batches_are_the_same_in_every_run(
    model_path: str, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Whatever was submitted before, and while another call's batch is still running."""
    actor = TeacherActor(settings_for(model_path, early=False, max_tokens_per_batch=64))
    batches: list[list[str]] = []
    gate, original = threading.Event(), actor.scorer.score_batch

    def record(requests: Any, topk: int) -> Any:
        gate.wait(30)
        batches.append([request.key for request in requests])
        return original(requests, topk)

    monkeypatch.setattr(actor.scorer, "score_batch", record)
    assert actor.submit([item(r) for r in REQUESTS[:first]], 1) == 0, "nothing is scored before it is asked for"
    half = len(REQUESTS) // 2
    with ThreadPoolExecutor() as pool:
        entry = pool.submit(ask, actor, REQUESTS[:half], 1)
        wait_for(lambda: actor.store.running)
        two = pool.submit(ask, actor, REQUESTS[half:], 1)
        wait_for(lambda: actor.collects == 2)
        gate.set()
        assert len(entry.result()) + len(two.result()) == len(REQUESTS)
    batches_of = actor.scorer.batches
    expected = []
    for part in (list(REQUESTS[:half]), list(REQUESTS[half:])):
        while part:
            batch = batches_of(part)[0]
            expected.append([part[index].key for index in batch])
            part = [request for index, request in enumerate(part) if index not in batch]
    assert batches == expected


@pytest.mark.parametrize("replaced", [True, False])
def test_whoever_waits_for_a_dropped_request_is_told(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Another collect replaces the tokens of a running request, or closes its step."""
    gate, original, caught = threading.Event(), actor.scorer.score_batch, []
    monkeypatch.setattr(actor.scorer, "score_batch", lambda *args: gate.wait(30) and original(*args))

    def collect() -> None:
        try:
            ask(actor, [request("k_0", 4, 10, seed=1)], step=1)
        except LookupError as error:
            caught.append(str(error))

    waiter = threading.Thread(target=collect)
    waiter.start()
    wait_for(lambda: actor.store.running)
    other = threading.Thread(target=ask, args=(actor, [request("k_0" if replaced else "l_0", 4, 10, seed=2)], 2))
    other.start()
    waiter.join(timeout=30)
    assert len(caught) == 1 and ("other tokens" if replaced else "step 2 closed") in caught[0]
    gate.set()
    other.join(timeout=30)
    assert len(actor.store.done) == 1 and not actor.store.running and not actor.store.queued


def test_submit_and_ping_return_while_a_forward_pass_runs(actor: TeacherActor, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, started = threading.Event(), threading.Event()
    original = actor.scorer.score_batch

    def gated(*args: Any) -> Any:
        started.set()
        assert gate.wait(30)
        return original(*args)

    monkeypatch.setattr(actor.scorer, "score_batch", gated)
    actor.submit([item(REQUESTS[1])], 1)
    assert started.wait(30)
    assert actor.submit([item(REQUESTS[2]), item(REQUESTS[3])], 1) == 2
    assert actor.ping() == os.getpid() and actor.stats()["queue_length"] == 3
    gate.set()
    wait_for(lambda: actor.stats()["tokens_scored"] == 5 + 10 + 15)
    assert actor.stats()["batches"] == 2, "late arrivals shared the next batch"


def test_what_cannot_be_answered_is_refused(actor: TeacherActor) -> None:
    with pytest.raises(ValueError, match=r"too_long.*max_position_embeddings=128"):
        ask(actor, [REQUESTS[0], request("too_long", 100, 100)], 1)
    with pytest.raises(ValueError, match="top-5 asked of a teacher that keeps top-4"):
        ask(actor, REQUESTS, 1, topk=5)
    with pytest.raises(ValueError, match="vocab_limit"):
        actor.collect([(*item(REQUESTS[1]), np.full((5, 1), LIMIT))], CollectSpec(1))
    with pytest.raises(ValueError, match="wire_dtype"):
        settings_for(wire_dtype="bfloat16")
    assert_right(ask(actor, REQUESTS, 1))


def test_nan_weights_come_back_invalid(tmp_path: Path) -> None:
    path = save_tiny_qwen3(tmp_path, VOCAB, LIMIT)
    model = tiny_qwen3(VOCAB)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.nan
    model.save_pretrained(path)
    score = ask(TeacherActor(settings_for(path)), REQUESTS[-1:], 1, topk=2)[0]
    assert not score.valid.any() and score.log_q.isnan().all()


# The pool, on Ray


@pytest.fixture(scope="module")
def pool(cluster: None, model_path: str) -> TeacherPool:
    return TeacherPool.start(settings_for(model_path), 2, name_prefix="t", env_vars={"OMP_NUM_THREADS": "1"})


def with_actors(actor_class: type, count: int, *args: Any, timeout_s: float = 60.0) -> TeacherPool:
    """A pool of actors of another class, restarting like the real ones."""
    remote: Any = ray.remote(concurrency_groups={"control": 1})(actor_class)  # type: ignore[call-overload]
    handles = [remote.options(max_concurrency=4, max_restarts=-1).remote(*args) for _ in range(count)]
    return TeacherPool(handles, "test", timeout_s)


def table(model_path: str, at_ids: bool = True) -> dict[str, bytes | str]:
    """A replica's answer to each of REQUESTS."""
    items = [(*item(asked), ids if at_ids else None) for asked, ids in zip(REQUESTS, AT_IDS, strict=True)]
    answers = TeacherActor(settings_for(model_path)).collect(items, CollectSpec(1))
    return {asked.key: answer for asked, answer in zip(REQUESTS, answers, strict=True)}


def test_the_pool_scores_in_order(pool: TeacherPool) -> None:
    assert {pool.replica_of(r.key) for r in REQUESTS} == {0, 1}
    for uid in (0, 3, 6, 9):
        assert len({pool.replica_of(f"{uid}_{n}_0") for n in range(8)}) == 1, "rollouts of a prompt share a replica"
    for asked in REQUESTS:
        pool.submit(asked, step=1)
    scores = pool.collect(REQUESTS, [torch.tensor(ids) for ids in AT_IDS], CollectSpec(1, topk=2))
    assert_right(scores, AT_IDS)
    assert all(score.topk_ids is not None and score.topk_ids.shape[1] == 2 for score in scores)
    assert pool.collect([], None, CollectSpec(1)) == []


def test_the_pool_hands_out_hidden_states_and_the_head_that_makes_log_probs_of_them(pool: TeacherPool) -> None:
    scores, head, model = (
        pool.collect(REQUESTS, AT_IDS, CollectSpec(1, topk=2, hidden=True)),
        pool.lm_head(),
        tiny_qwen3(VOCAB),
    )
    assert_right(scores, AT_IDS)
    assert torch.equal(head.weight, model.lm_head.weight[:LIMIT])
    for asked, score in zip(REQUESTS, scores, strict=True):
        assert score.hidden is not None and score.hidden.dtype == torch.float32
        log_probs = head.logits(score.hidden).log_softmax(-1).double()
        torch.testing.assert_close(log_probs, reference(model, asked, LIMIT), **CLOSE)
    assert all(score.hidden is None for score in pool.collect(REQUESTS, None, CollectSpec(1))), "not asked, not shipped"


def test_another_process_connects_and_submits(pool: TeacherPool) -> None:
    asked = request("remote_0_0", 6, 17)

    @ray.remote(num_cpus=0)
    def rollout_worker(key: str, prompt: np.ndarray, response: np.ndarray) -> None:
        TeacherPool.connect("t", 2).submit(ScoreRequest(key, prompt, response), step=3)

    ray.get(rollout_worker.remote(*item(asked)))
    replica: Any = pool.replicas[pool.replica_of(asked.key)]
    before: Any = ray.get(replica.stats.remote())
    pool.collect([asked], None, CollectSpec(3))
    after: Any = ray.get(replica.stats.remote())
    assert after["tokens_scored"] - before["tokens_scored"] in (0, 17), "scored once, before the collect or during it"
    assert after["queue_length"] == 0 and after["state_bytes"] > 0
    with pytest.raises(ValueError, match="nobody_0"):
        TeacherPool.connect("nobody", 1)


def test_a_bad_request_raises_and_is_not_masked(pool: TeacherPool) -> None:
    with pytest.raises(ValueError, match="max_position_embeddings=128"):
        pool.collect([request("too_long", 100, 100)], None, CollectSpec(3))


def test_a_failed_load_names_its_cause(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)nowhere did not load on 1 replicas.*nowhere"):
        TeacherPool.start(settings_for(str(tmp_path / "nowhere")), 1, name_prefix="bad")
    with pytest.raises(ValueError, match="one \\(group, bundle index\\) for each"):
        TeacherPool.start(settings_for("model"), 2, placement_groups=[])


@pytest.mark.parametrize("real", [True, False], ids=["one real replica", "two that answer from a table"])
def test_a_replica_killed_during_collect_is_survived(
    cluster: None, model_path: str, real: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The replica of prompt 0 dies in its first forward pass; with one replica, its restart answers."""

    class Slow(TeacherActor):
        def __init__(self, settings: TeacherSettings, marker: str) -> None:
            super().__init__(settings)
            if not os.path.exists(marker):
                self.scorer.score_batch = lambda *_: time.sleep(60)  # type: ignore[method-assign]

    marker = tmp_path / "slow_no_more"
    if real:
        teacher = with_actors(Slow, 1, settings_for(model_path), str(marker))
    else:
        teacher = with_actors(CannedReplica, 2, table(model_path), None, str(marker))
    pids = ray.get([handle.ping.remote() for handle in teacher.replicas])
    marker.touch()

    def kill() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(1.0, kill)
    timer.start()
    with caplog.at_level(logging.WARNING):
        scores = teacher.collect(REQUESTS, AT_IDS, CollectSpec(1))
    timer.join()
    assert_right(scores, AT_IDS)
    assert "asking the next replica" in caplog.text and "test_0" in caplog.text


def test_a_dead_replica_hands_over_to_the_other(
    cluster: None, model_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = with_actors(TeacherActor, 2, settings_for(model_path))
    ray.get([handle.ping.remote() for handle in teacher.replicas])
    ray.kill(teacher.replicas[0])
    scores = teacher.collect(REQUESTS, AT_IDS, CollectSpec(1, hidden=True))
    assert_right(scores, AT_IDS)
    assert all(score.hidden is not None and score.hidden.isfinite().all() for score in scores)
    assert teacher.lm_head().weight.shape == (LIMIT, 32)
    assert "test_0 gave no LM head" in caplog.text and "test_1" not in caplog.text
    ray.kill(teacher.replicas[1])
    for asked, score in zip(REQUESTS, teacher.collect(REQUESTS, None, CollectSpec(1, hidden=True)), strict=True):
        assert score.hidden is not None and score.hidden.shape == (len(asked.response_ids), 32)
        assert score.hidden.isnan().all() and not score.valid.any()
    with pytest.raises(RuntimeError, match=r"no LM head from any.*test_0.*test_1"):
        teacher.lm_head()


def test_rows_of_lost_replicas_are_missing_never_zero(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    teacher = with_actors(CannedReplica, 1, {}, {}, "")
    ray.get(teacher.replicas[0].ping.remote())
    ray.kill(teacher.replicas[0])
    scores = teacher.collect(REQUESTS, AT_IDS, CollectSpec(1, topk=2, hidden=True))
    for asked, score in zip(REQUESTS, scores, strict=True):
        length = len(asked.response_ids)
        assert score.length == length and not score.valid.any() and score.log_q.isnan().all()
        assert score.at_ids_log_q is not None and score.at_ids_log_q.shape == (length, 3)
        assert score.topk_log_q is not None and score.topk_log_q.shape == (length, 2)
        assert score.hidden is None, "no answer ever told H"
    assert "test_0 lost 16 rollouts, their tokens are masked" in caplog.text


def test_lost_rows_look_like_the_answered_ones_of_the_same_batch(cluster: None) -> None:
    """A request that kills whoever reads it takes both replicas with it, one after the other."""

    def ones(length: int) -> TeacherScore:
        valid = torch.ones(length, dtype=torch.bool)
        return TeacherScore(torch.zeros(length), valid, hidden=torch.ones(length, 7, dtype=torch.bfloat16))

    class Mortal:
        def collect(self, requests: list[Any], *_: Any) -> list[bytes]:
            if any(item[0].startswith("0_") for item in requests):
                os._exit(1)
            asked = [ScoreRequest(*item[:3]) for item in requests]
            return [encode(ones(len(r.response_ids)), r.key, r.checksum) for r in asked]

        def ping(self) -> int:
            return 0

    remote: Any = ray.remote(concurrency_groups={"control": 1})(Mortal)  # type: ignore[call-overload]
    teacher = TeacherPool([remote.remote() for _ in range(2)], "test", 60.0)
    lost_to = teacher.replica_of("0_0")
    scores = teacher.collect(REQUESTS, None, CollectSpec(1, hidden=True))
    for asked, score in zip(REQUESTS, scores, strict=True):
        assert score.hidden is not None and score.hidden.dtype == torch.bfloat16
        assert score.hidden.shape == (len(asked.response_ids), 7)
        lost = teacher.replica_of(asked.key) == lost_to
        assert score.hidden.isnan().all() if lost else (score.hidden == 1).all()


def test_the_head_comes_while_all_collects_wait_and_after_a_restart(cluster: None) -> None:
    class Busy:
        def __init__(self, head: LMHead) -> None:
            self.head = head

        def ping(self) -> int:
            return os.getpid()

        def collect(self) -> None:
            time.sleep(600)

        def lm_head(self) -> LMHead:
            return self.head

    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    sent = LMHead(weight, torch.arange(5).bfloat16(), scale=0.5, softcap=30.0, temperature=0.7)
    teacher = with_actors(Busy, 1, sent)
    replica: Any = teacher.replicas[0]
    pid: Any = ray.get(replica.ping.options(concurrency_group="control").remote())
    waiting = [replica.collect.remote() for _ in range(8)]
    for attempt in range(2):
        begin, got = time.monotonic(), teacher.lm_head()
        assert time.monotonic() - begin < 50
        assert got.weight.dtype == torch.bfloat16 and torch.equal(got.weight, sent.weight)
        assert got.bias is not None and torch.equal(got.bias, torch.arange(5).bfloat16())
        assert (got.scale, got.softcap, got.temperature) == (0.5, 30.0, 0.7)
        if not attempt:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(RayActorError):
                ray.get(waiting[0])
    ray.kill(replica)


def test_a_silent_replica_times_out_into_missing(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def ping(self) -> int:
            return 0

        def collect(self, *_: Any) -> None:
            time.sleep(60)

    teacher = with_actors(Silent, 1, timeout_s=0.5)
    ray.get(teacher.replicas[0].ping.remote())
    score = teacher.collect(REQUESTS[3:4], None, CollectSpec(1))[0]
    assert not score.valid.any() and score.length == 15
    assert caplog.text.count("test_0 lost 1 rollouts") == 3


def test_what_two_replicas_lost_is_asked_once_more(cluster: None, model_path: str, tmp_path: Path) -> None:
    teacher = with_actors(FragileReplica, 1, table(model_path, at_ids=False), str(tmp_path))
    ray.get(teacher.replicas[0].ping.remote())
    assert_right(teacher.collect(REQUESTS, None, CollectSpec(1)))
    assert len(list(tmp_path.iterdir())) == 3 and teacher.stats()["rollouts_retried"] == len(REQUESTS)


def test_an_answer_to_another_question_is_refused_and_masked(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    asked = REQUESTS[1]
    for key, checksum in ((asked.key, asked.checksum ^ 1), ("other_0", asked.checksum)):
        caplog.clear()
        confused = {asked.key: encode(all_zero(len(asked.response_ids)), key, checksum)}
        score = with_actors(CannedReplica, 1, confused, confused, "").collect([asked], None, CollectSpec(1))[0]
        assert not score.valid.any() and score.log_q.isnan().all()
        assert "the teacher answered" in caplog.text and "their tokens are masked" in caplog.text


def first_life(answers: dict[str, bytes | str], fault: str) -> dict[str, bytes | str] | None:
    """A table of what a sick replica answers instead."""
    if fault == "hangs":
        return None
    if fault == "mixes up":
        return dict(zip(answers, reversed(answers.values()), strict=True))
    if fault == "fails":
        return dict.fromkeys(answers, "out of memory, say")
    decoded = [decode(answer) for answer in answers.values() if isinstance(answer, bytes)]
    scores = [(replace(score, log_q=score.log_q * torch.nan), key, checksum) for key, checksum, score in decoded]
    return dict(zip(answers, (encode(*score) for score in scores), strict=True))


@pytest.mark.parametrize("fault", ["hangs", "mixes up", "NaN", "fails"])
def test_a_sick_replica_is_bypassed_restarted_and_used_again(
    cluster: None, model_path: str, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers, marker, healthy = table(model_path), tmp_path / "well", tmp_path
    sick = first_life(answers, fault)
    remote: Any = ray.remote(concurrency_groups={"control": 1})(CannedReplica)  # type: ignore[call-overload]
    make = remote.options(max_concurrency=4, max_restarts=-1).remote
    teacher = TeacherPool([make(answers, sick, str(path)) for path in (marker, healthy)], "test", 60.0)
    ray.get([handle.ping.remote() for handle in teacher.replicas])
    marker.touch()
    # Ten seconds of silence: a busy machine has kept a healthy replica silent for three.
    teacher.timeout_s = 10.0 if fault == "hangs" else 60.0
    assert_right(teacher.collect(REQUESTS, AT_IDS, CollectSpec(1)), AT_IDS)
    own = sum(teacher.replica_of(r.key) == 0 for r in REQUESTS)
    assert "test_0 is restarted" in caplog.text and "masked" not in caplog.text
    stats = teacher.stats()
    assert stats["replicas_restarted"] == 1
    assert 0 < stats["rollouts_retried"] <= own, "an empty response holds no NaN"
    teacher.timeout_s = 60.0
    teacher._await_alive(0, time.monotonic() + 60)
    assert_right(teacher.collect(REQUESTS, AT_IDS, CollectSpec(2)), AT_IDS)
    assert teacher.stats()["rollouts_retried"] == stats["rollouts_retried"], "the second life answers at once"


def test_the_only_replica_is_loaded_again_once_when_it_gives_nan(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_tiny_qwen3(tmp_path, VOCAB, LIMIT)
    model = tiny_qwen3(VOCAB)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.nan
    model.save_pretrained(path)
    teacher = with_actors(TeacherActor, 1, settings_for(path))
    for step in (1, 2):
        for asked, score in zip(REQUESTS, teacher.collect(REQUESTS, None, CollectSpec(step)), strict=True):
            assert score.length == len(asked.response_ids) and not score.valid.any() and score.log_q.isnan().all()
    assert teacher.stats()["replicas_restarted"] == 1 and "there is no other replica to ask" in caplog.text


def test_answers_come_in_slices_of_bounded_size(pool: TeacherPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "REPLY_BYTES", 400)
    asked: list[int] = []
    original = gather.Question.open
    monkeypatch.setattr(gather.Question, "open", lambda self, data: asked.append(len(data)) or original(self, data))
    assert_right(pool.collect(REQUESTS, AT_IDS, CollectSpec(6)), AT_IDS)
    assert len(asked) == len(REQUESTS)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_slices_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    actual = gather.slices(dict(enumerate(sizes)), limit)
    assert [key for part in actual for key in part] == list(range(len(sizes))) and all(actual)
    assert all(sum(sizes[key] for key in part) <= limit or len(part) == 1 for part in actual)


def test_a_teacher_without_hidden_states_keeps_little_and_refuses_questions_about_ids(tmp_path: Path) -> None:
    path = str(save_tiny_qwen3(tmp_path / "model"))
    asked = ScoreRequest("a_0", np.array([1, 2]), np.arange(3, 9))
    kept, bare = (TeacherActor(settings_for(path, topk=0, keep_hidden=keep)) for keep in (True, False))
    full, short = (ask(actor, [asked], step=1)[0] for actor in (kept, bare))
    assert torch.equal(full.log_q, short.log_q) and torch.equal(full.valid, short.valid)
    assert bare.stats()["state_bytes"] == 6 * (4 + 4 + 4) < kept.stats()["state_bytes"]
    with pytest.raises(ValueError, match="keep_hidden"):
        bare.collect([(*item(asked), np.zeros((6, 2), np.int32))], CollectSpec(1))
    with pytest.raises(ValueError, match="hidden states asked of a teacher that keeps no hidden states"):
        ask(bare, [asked], step=1, hidden=True)
    assert torch.equal(bare.lm_head().weight, kept.lm_head().weight), "the head is there all the same"


def test_stats_count_what_was_scored_before_it_was_asked_for(tmp_path: Path) -> None:
    actor = TeacherActor(settings_for(str(save_tiny_qwen3(tmp_path / "model"))))
    early, late = (ScoreRequest(key, np.array([1]), np.array([2, 3])) for key in ("a_0", "b_0"))
    actor.submit([item(early)], step=1)
    deadline = time.monotonic() + 60
    while actor.stats()["queue_length"] and time.monotonic() < deadline:
        time.sleep(0.01)
    ask(actor, [early, late], step=1)
    stats = actor.stats()
    assert (stats["rollouts_asked"], stats["rollouts_ready"]) == (2, 1)


# A teacher that shares its device


@pytest.fixture
def colocated(model_path: str) -> TeacherActor:
    return TeacherActor(settings_for(model_path, colocate=True))


def where(actor: TeacherActor) -> set[int]:
    """Addresses of the weights."""
    return {weight.data_ptr() for weight in actor.model.model.parameters()}


def test_a_colocated_teacher_scores_in_collect_alone_and_leaves_the_device(colocated: TeacherActor) -> None:
    at_rest, seen = where(colocated), []
    rows = colocated.model.reader.rows
    colocated.model.reader.rows = lambda requests: seen.append(where(colocated)) or rows(requests)  # type: ignore[method-assign]
    colocated.submit([item(r) for r in REQUESTS], step=1)
    time.sleep(0.3)
    assert colocated.stats()["batches"] == 0 and not seen and where(colocated) == at_rest
    answers = colocated.collect(
        [(*item(r), ids) for r, ids in zip(REQUESTS, AT_IDS, strict=True)], CollectSpec(1, topk=2)
    )
    assert_right([decode(data)[2] for data in answers], AT_IDS)  # type: ignore[arg-type]
    assert seen and all(place.isdisjoint(at_rest) for place in seen), "copies of the weights did the work"
    assert where(colocated) == at_rest


def test_a_colocated_teacher_answers_late_questions_and_two_callers_at_once(colocated: TeacherActor) -> None:
    at_rest = where(colocated)
    ask(colocated, REQUESTS, 1)
    batches = colocated.stats()["batches"]
    with ThreadPoolExecutor(4) as callers:
        late = list(callers.map(lambda half: ask(colocated, REQUESTS[half::2], 1), (0, 1, 0, 1)))
    for half, scores in zip((0, 1, 0, 1), late, strict=True):
        assert [score.length for score in scores] == [len(r.response_ids) for r in REQUESTS[half::2]]
    assert colocated.stats()["batches"] == batches, "nothing was scored twice"
    assert where(colocated) == at_rest and colocated.visits.count == 0


def test_what_a_colocated_teacher_keeps_is_in_host_memory_and_its_head_is_the_models(colocated: TeacherActor) -> None:
    ask(colocated, REQUESTS, 1)
    weight: Any = colocated.model.model.get_output_embeddings().weight
    assert torch.equal(colocated.lm_head().weight, weight[:LIMIT])
    assert all(job.future.result().hidden.device.type == "cpu" for job in colocated.store.done.values())


def test_a_colocated_teacher_that_cannot_reproduce_its_logits_says_so_in_its_first_collect(model_path: str) -> None:
    actor = TeacherActor(settings_for(model_path, colocate=True))
    actor.model.reader.logits = lambda ids: torch.ones(len(ids), VOCAB)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="logits are not lm_head"):
        ask(actor, REQUESTS[:1], 1)
    assert not actor.probed and actor.visits.count == 0


def test_a_colocated_teacher_is_not_sharded() -> None:
    with pytest.raises(ValueError, match="lies whole on each device"):
        settings_for(colocate=True, shards=2)


def test_weights_that_do_not_fit_the_device_stay_where_they_are(
    colocated: TeacherActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_rest, moved = where(colocated), []
    to = torch.Tensor.to

    def full(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("copy"):
            moved.append(tensor)
            if len(moved) == 3:
                raise torch.OutOfMemoryError("planted")
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(RuntimeError, match=r"do not fit beside.*gpu_memory_utilization"):
        ask(colocated, REQUESTS, 1)
    assert where(colocated) == at_rest and colocated.visits.count == 0
    assert_right(ask(colocated, REQUESTS, 1))
