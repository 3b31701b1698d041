"""Hidden states x LM head, both as the teacher hands them out, give the teacher's whole distribution q_t."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool_harness import settings_for
from scorer_harness import SMALL, build, reference, request
from tiny_models import save_tiny_qwen3, tiny_qwen3, tiny_tokenizer
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PhiConfig, PhiForCausalLM

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ForwardKLConfig, ObjectiveConfig, TeacherConfig
from opd_verl.objectives.names import Placement, Support
from opd_verl.teacher.client.start import replica_settings
from opd_verl.teacher.needs import keeps_hidden, needs_hidden, student_topk, teacher_topk
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.wire import decode

VOCAB, LIMIT, TEMPERATURE = 64, 60, 0.7
OWN: dict[str, Any] = {"temperature": TEMPERATURE, "max_tokens_per_batch": 16384}
REQUESTS = [request("a_0", 5, 12, LIMIT), request("b_0", 1, 20, LIMIT), request("c_0", 9, 1, LIMIT)]
EMPTY = request("d_0", 3, 0, LIMIT)


def phi() -> Any:
    """Its LM head has a bias."""
    model = build(PhiConfig(**SMALL), PhiForCausalLM)
    torch.nn.init.normal_(model.lm_head.bias, std=2.0)
    return model


MODELS = {
    "bias": phi,
    "soft cap": lambda: build(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), Gemma2ForCausalLM),
    "scale": lambda: build(GraniteConfig(**SMALL, logits_scaling=3.0), GraniteForCausalLM),
    "plain": lambda: tiny_qwen3(VOCAB),
    "tied": lambda: tiny_qwen3(VOCAB, tie_word_embeddings=True),
}


def teacher_of(model: Any, path: Path, **settings: Any) -> TeacherActor:
    model.save_pretrained(path)
    tiny_tokenizer(LIMIT).save_pretrained(path)
    return TeacherActor(settings_for(str(path), **OWN | settings))


def collect(actor: TeacherActor, requests: list[ScoreRequest], **options: Any) -> list[TeacherScore]:
    items = [(r.key, r.prompt_ids, r.response_ids, None) for r in requests]
    return [decode(data)[2] for data in actor.collect(items, CollectSpec(1, **{"hidden": True, **options}))]


def log_q(actor: TeacherActor, score: TeacherScore) -> torch.Tensor:
    """[R, LIMIT] in another process: nothing but the score and the pickled head."""
    assert score.hidden is not None
    return pickle.loads(pickle.dumps(actor.lm_head())).logits(score.hidden).log_softmax(-1)


def own_log_softmax(model: Any, asked: ScoreRequest) -> torch.Tensor:
    """The model's own logits of the rows that predict the response, in its own dtype."""
    ids = torch.tensor([*asked.prompt_ids.tolist(), *asked.response_ids.tolist()])
    with torch.no_grad():
        logits = model(input_ids=ids[None, :-1]).logits[0, len(asked.prompt_ids) - 1 :, :LIMIT]
    return (logits.float() / TEMPERATURE).log_softmax(-1)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_times_head_is_the_teachers_own_log_softmax(name: str, tmp_path: Path) -> None:
    """Over the ids below the vocabulary cut, at the rollout temperature."""
    model = MODELS[name]()
    actor = teacher_of(model, tmp_path)
    head = actor.lm_head()
    assert head.weight.shape == (LIMIT, 32) and (head.bias is not None) == (name == "bias")
    for asked, score in zip(REQUESTS, collect(actor, REQUESTS), strict=True):
        got = log_q(actor, score)
        torch.testing.assert_close(got, own_log_softmax(model, asked), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.double(), reference(model, asked, LIMIT, TEMPERATURE), rtol=2e-5, atol=2e-5)
        sampled = torch.tensor(asked.response_ids).long()[:, None]
        torch.testing.assert_close(got.gather(1, sampled)[:, 0], score.log_q, rtol=1e-5, atol=1e-5)
        assert score.valid.all()


@pytest.mark.parametrize("name", ["plain", "bias"])
def test_a_bfloat16_teacher_ships_its_own_numbers(name: str, tmp_path: Path) -> None:
    """One rollout per batch, as the reference: the padding of a batch alone moves bf16 hidden states by a rounding."""
    model = MODELS[name]().bfloat16()
    actor = teacher_of(model, tmp_path, dtype="bfloat16", max_tokens_per_batch=1)
    head = actor.lm_head()
    assert head.weight.dtype == torch.bfloat16 and torch.equal(head.weight, model.lm_head.weight[:LIMIT])
    for asked, score in zip(REQUESTS, collect(actor, REQUESTS), strict=True):
        assert score.hidden is not None and score.hidden.dtype == torch.bfloat16
        kept = actor.store.done[asked.key].future.result().hidden
        assert torch.equal(score.hidden, kept), "bit for bit what the model made"
        exact = torch.nn.functional.linear(score.hidden.double(), head.weight.double())
        exact = (exact if head.bias is None else exact + head.bias.double()) / TEMPERATURE
        got = log_q(actor, score)
        # bf16 rounds a logit by at most 2^-8 of its size; the normaliser moves by at most as much.
        rounding = 2**-8 * exact.abs().max().item()
        torch.testing.assert_close(got.double(), exact.log_softmax(-1), rtol=0, atol=2 * rounding)
        own = own_log_softmax(actor.scorer.model, asked)  # as loaded: `.bfloat16()` rounds the rotary angles too
        torch.testing.assert_close(got, own, rtol=0, atol=2 * rounding)
        sampled = torch.tensor(asked.response_ids).long()[:, None]
        torch.testing.assert_close(got.gather(1, sampled)[:, 0], score.log_q, rtol=0, atol=2 * rounding)


def test_the_head_is_a_copy_of_its_rows_and_no_view_of_the_matrix(tmp_path: Path) -> None:
    actor = teacher_of(phi(), tmp_path)
    head, own = actor.lm_head(), actor.scorer.head
    assert head.bias is not None and own.bias is not None
    for copied, original in ((head.weight, own.weight), (head.bias, own.bias)):
        assert torch.equal(copied, original) and copied.data_ptr() != original.data_ptr()
        assert copied.untyped_storage().nbytes() == copied.nbytes < original.untyped_storage().nbytes()
        assert copied.device.type == "cpu" and not copied.requires_grad
    assert (head.scale, head.softcap, head.temperature) == (own.scale, own.softcap, own.temperature)


def test_hidden_states_come_beside_everything_else_and_only_if_asked(tmp_path: Path) -> None:
    actor = teacher_of(tiny_qwen3(VOCAB), tmp_path)
    at_ids = [np.zeros((len(r.response_ids), 3), np.int32) for r in (*REQUESTS, EMPTY)]
    items = [(r.key, r.prompt_ids, r.response_ids, ids) for r, ids in zip((*REQUESTS, EMPTY), at_ids, strict=True)]
    for hidden in (False, True):
        scores = [decode(data)[2] for data in actor.collect(items, CollectSpec(1, topk=2, hidden=hidden))]
        for asked, score in zip((*REQUESTS, EMPTY), scores, strict=True):
            length = len(asked.response_ids)
            assert score.at_ids_log_q is not None and score.at_ids_log_q.shape == (length, 3)
            assert score.topk_log_q is not None and score.topk_log_q.shape == (length, 2)
            assert (score.hidden is not None) == hidden
            assert score.hidden is None or score.hidden.shape == (length, 32), "a rollout without tokens has H too"


def test_evicted_hidden_states_are_recomputed(tmp_path: Path) -> None:
    path = save_tiny_qwen3(tmp_path, VOCAB, LIMIT)
    kept, evicted = (TeacherActor(settings_for(path, **OWN | limit)) for limit in ({}, {"max_state_gib": 0.0}))
    for _ in range(2):
        for a, b in zip(collect(kept, REQUESTS), collect(evicted, REQUESTS), strict=True):
            assert a.hidden is not None and b.hidden is not None
            torch.testing.assert_close(a.hidden, b.hidden, rtol=1e-5, atol=1e-5)
    assert evicted.stats()["state_bytes"] == 0


def test_a_hidden_state_that_is_not_finite_invalidates_its_token(tmp_path: Path) -> None:
    model = tiny_qwen3(VOCAB)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.inf
        model.lm_head.weight[:, 3] = 0.0
    assert not any(score.valid.any() for score in collect(teacher_of(model, tmp_path), REQUESTS))


# What the config asks for

TEACHER_SIDE = {"teacher_topk", "union", "intersection", "symmetric_difference"}


def config(support: Support, k: int, placement: Placement, forward_k: int) -> OpdConfig:
    return OpdConfig(
        objective=ObjectiveConfig(support=support, k=k),
        forward_kl=ForwardKLConfig(placement=placement, k=forward_k),
    )


@pytest.mark.parametrize(("k", "forward_k"), [(0, 16), (16, 4), (4, 16), (8, 8)])
def test_the_teacher_keeps_what_any_part_of_the_config_reads(k: int, forward_k: int) -> None:
    for support, placement in itertools.product(Support, Placement):
        opd = config(support, k, placement, forward_k)
        asked = [k] * (support.value in TEACHER_SIDE) + [forward_k] * (placement.value != "none")
        assert teacher_topk(opd) == max(asked, default=0)
        assert student_topk(opd) == (0 if support.value == "teacher_topk" else k)
        assert needs_hidden(opd) == (support.value == "full")
        assert keeps_hidden(opd) == (student_topk(opd) > 0 or support.value == "full")


def test_the_settings_of_a_replica() -> None:
    opd = config(Support.union, 8, Placement.gated, 12)
    opd.teacher = TeacherConfig(path="x", dtype="float32", temperature=0.7, chunk_rows=5, max_state_gib=0.5)
    settings = replica_settings(opd, opd.teacher, 90, "pointer")
    assert (settings.topk, settings.keep_hidden, settings.vocab_limit) == (12, True, 90)
    assert (settings.device, settings.weights_pointer) == ("cpu", "pointer")
    assert (settings.look_every, settings.look_topk) == (opd.diagnostics.every, opd.diagnostics.k)
    assert settings.teacher is opd.teacher and settings.max_state_bytes == 1 << 29
    plain = config(Support.sampled, 0, Placement.none, 16)
    plain.diagnostics.enabled = False
    settings = replica_settings(plain, plain.teacher, 90)
    assert (settings.topk, settings.keep_hidden, settings.weights_pointer) == (0, False, None)
    assert (settings.look_every, settings.look_topk) == (0, 0)
