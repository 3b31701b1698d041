"""Requests to a teacher of the tiny model, and the comparison of its scores with a float64 forward pass."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from scorer_harness import reference, request
from tiny_models import tiny_qwen3

from opd_verl.config.sections import TeacherConfig
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.wire import decode

VOCAB, LIMIT, K = 96, 90, 4

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}

SETTINGS = TeacherSettings(
    TeacherConfig(dtype="float32", wire_dtype="float32", max_tokens_per_batch=200, timeout_s=60.0), device="cpu", topk=K
)

REQUESTS = [request(f"{uid}_{n}_0", 3 + uid, 5 * n, seed=uid) for uid in (0, 3, 6, 9) for n in range(4)]
"""Four prompts that crc32 spreads over two replicas, four rollouts each, of 0 to 15 tokens."""

AT_IDS = [np.random.default_rng(i).integers(0, LIMIT, (len(r.response_ids), 3)) for i, r in enumerate(REQUESTS)]


def settings_for(path: str = "", **changes: Any) -> TeacherSettings:
    """SETTINGS for the model at `path`; `changes` name fields of TeacherSettings or of the TeacherConfig in it."""
    own = {field.name for field in fields(TeacherSettings)} & changes.keys()
    teacher = replace(SETTINGS.teacher, path=path, **{name: changes[name] for name in changes.keys() - own})
    return replace(SETTINGS, teacher=teacher, **{name: changes[name] for name in own})


def item(asked: ScoreRequest) -> tuple[str, np.ndarray, np.ndarray]:
    return asked.key, asked.prompt_ids, asked.response_ids


def ask(actor: TeacherActor, requests: list[ScoreRequest], step: int, **options: Any) -> list[TeacherScore]:
    return [
        decode(data)[2] for data in actor.collect([(*item(r), None) for r in requests], CollectSpec(step, **options))
    ]


def assert_right(scores: list[TeacherScore], at_ids: list[np.ndarray] | None = None) -> None:
    """All REQUESTS' scores against the float64 forward pass."""
    model = tiny_qwen3(VOCAB)
    for index, (asked, score) in enumerate(zip(REQUESTS, scores, strict=True)):
        log_probs = reference(model, asked, LIMIT)
        sampled = torch.tensor(asked.response_ids).long()[:, None]
        torch.testing.assert_close(score.log_q.double(), log_probs.gather(1, sampled)[:, 0], **CLOSE)
        assert score.valid.all() and score.length == len(asked.response_ids)
        if at_ids is not None:
            expected = log_probs.gather(1, torch.tensor(at_ids[index]).long())
            assert score.at_ids_log_q is not None
            torch.testing.assert_close(score.at_ids_log_q.double(), expected, **CLOSE)


def all_zero(length: int) -> TeacherScore:
    return TeacherScore(torch.zeros(length), torch.ones(length, dtype=torch.bool))
