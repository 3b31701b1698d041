"""A teacher behind an inference server: verl's answers become states, and what is no answer becomes an error.

The server here is a Ray actor that answers as verl's does (`extract_prompt_logprobs` makes its lists), from a model
that transformers runs. The real one is in tests/e2e/test_main_ppo.py.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from inference_server import Server
from pool_harness import CLOSE, LIMIT, REQUESTS, VOCAB, K, assert_right, item, settings_for
from scorer_harness import reference, request
from tiny_models import save_tiny_qwen3, tiny_qwen3

from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.score import CollectSpec, ScoreRequest
from opd_verl.teacher.scoring.server_scorer import ONLY_LOG_PROBS, rollout_state
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.wire import decode


def settings_of_a_server(path: str, **changes: Any) -> TeacherSettings:
    return settings_for(path, **{"max_tokens_per_batch": 60, "keep_hidden": False} | changes)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_qwen3(tmp_path_factory.mktemp("teacher"), VOCAB, LIMIT)


@pytest.fixture(scope="module")
def only_server(cluster: None) -> Any:
    """One for all tests: its process imports vLLM."""
    return ray.remote(Server).remote()


@pytest.fixture
def server(only_server: Any) -> Any:
    """The server without a memory of other tests."""
    ray.get(only_server.forget.remote())
    return only_server


@pytest.fixture
def actor(model_path: str, server: Any) -> TeacherActor:
    return TeacherActor(settings_of_a_server(model_path), server=server)


def collect(actor: TeacherActor, requests: list[ScoreRequest], topk: int = 0) -> list[bytes | str]:
    return actor.collect([(*item(entry), None) for entry in requests], CollectSpec(1, topk=topk, entropy=False))


def test_sampled_tokens_and_top_k_are_those_of_the_float64_forward_pass(actor: TeacherActor) -> None:
    answers = collect(actor, REQUESTS, topk=K)
    assert [decode(data)[:2] for data in answers if isinstance(data, bytes)] == [(r.key, r.checksum) for r in REQUESTS]
    scores = [decode(data)[2] for data in answers if isinstance(data, bytes)]
    assert_right(scores)
    for asked, score in zip(REQUESTS, scores, strict=True):
        top = reference(tiny_qwen3(VOCAB), asked, LIMIT).topk(K)
        assert score.entropy is None and score.topk_ids is not None and score.topk_log_q is not None
        assert torch.equal(score.topk_ids.long(), top.indices)
        torch.testing.assert_close(score.topk_log_q.double(), top.values, **CLOSE)


def test_each_rollout_is_asked_once_and_for_the_top_k_once_more(actor: TeacherActor, server: Any) -> None:
    actor.submit([item(entry) for entry in REQUESTS], step=1)
    collect(actor, REQUESTS)
    collect(actor, REQUESTS, topk=K)
    asked = ray.get(server.ids.remote())
    assert len({name for name, _ in asked}) == len(asked), "every request of a server has an id of its own"
    assert sorted((name.rsplit(".", 2)[0], count) for name, count in asked) == sorted(
        (entry.key, count) for entry in REQUESTS for count in (0, K)
    )


def test_without_top_k_the_server_is_asked_for_the_sampled_token_alone(model_path: str, server: Any) -> None:
    actor = TeacherActor(settings_of_a_server(model_path, topk=0, max_tokens_per_batch=16384), server=server)
    assert_right([decode(data)[2] for data in collect(actor, REQUESTS) if isinstance(data, bytes)])
    assert {count for _, count in ray.get(server.ids.remote())} == {0}


@pytest.mark.parametrize(
    ("how", "why"), [("raises", "planted in the server"), ("aborts", "no log-probs (aborted)"), ("mixes up", "tokens")]
)
def test_what_is_no_answer_fails_its_own_rollout_alone(actor: TeacherActor, server: Any, how: str, why: str) -> None:
    ray.get(server.breaks.remote({REQUESTS[5].key: how}))
    answers = collect(actor, REQUESTS)
    assert [index for index, answer in enumerate(answers) if isinstance(answer, str)] == [5]
    assert why in str(answers[5]) and REQUESTS[5].key in str(answers[5])


@pytest.mark.by_hand
def test_a_dead_server_is_said_for_every_rollout_and_its_pool_asks_the_other(model_path: str, server: Any) -> None:
    dead = ray.remote(Server).remote()
    ray.get(dead.ids.remote())
    pool = TeacherPool.start(settings_of_a_server(model_path), 2, name_prefix="served", servers=[dead, server])
    ray.kill(dead)
    scores = pool.collect(REQUESTS, None, CollectSpec(1, entropy=False))
    assert_right(scores)
    assert pool.stats()["rollouts_retried"] > 0
    actor = TeacherActor(settings_of_a_server(model_path), server=dead)
    answers = collect(actor, REQUESTS)
    assert all(isinstance(answer, str) and "inference server is lost" in answer for answer in answers)


def test_what_a_server_cannot_give_is_refused(actor: TeacherActor) -> None:
    at_ids = [(*item(REQUESTS[1]), np.zeros((5, 2), dtype=np.int32))]
    with pytest.raises(ValueError, match="log-probs at ids asked of a teacher that keeps no hidden states"):
        actor.collect(at_ids, CollectSpec(1))
    for ask in (actor.lm_head, lambda: actor.reload("nowhere")):
        with pytest.raises(ValueError, match=ONLY_LOG_PROBS[:40]):
            ask()


def test_the_generated_token_needs_a_position_too(actor: TeacherActor) -> None:
    actor.scorer.check(request("fits", 100, 27))
    with pytest.raises(ValueError, match="exceeds the teacher's max_position_embeddings=128"):
        actor.scorer.check(request("one too many", 100, 28))


def test_an_id_of_no_token_in_the_top_k_is_an_error() -> None:
    entry = request("k", 2, 1)
    sampled = {"prompt_ids": [[0], [int(entry.response_ids[0])], [0]], "prompt_logprobs": [[0.0], [-1.0], [0.0]]}
    top = {"prompt_ids": [[0], [LIMIT], [0]], "prompt_logprobs": [[0.0], [-0.5], [0.0]]}
    sampled, top = (SimpleNamespace(extra_fields=fields, stop_reason="completed") for fields in (sampled, top))
    assert rollout_state(entry, LIMIT + 1, 1, sampled, top).topk_ids.tolist() == [[LIMIT]]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=f"top-k holds id {LIMIT}"):
        rollout_state(entry, LIMIT, 1, sampled, top)


def test_as_many_servers_as_replicas(model_path: str, server: Any) -> None:
    with pytest.raises(ValueError, match="2 teacher replicas of 1 shards for 1 inference servers"):
        TeacherPool.start(settings_of_a_server(model_path), 2, name_prefix="few", servers=[server])
