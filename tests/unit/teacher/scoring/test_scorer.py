"""Scorer against a float64 forward pass of the same model, one rollout at a time, written from the definition.

float32 scores agree to about 1e-5 nats; Qwen3 computes its norms and rotary angles in float32 whatever its dtype.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scorer_harness import CLOSE, LIMIT, MIXED, SMALL, VOCAB, assert_matches, build, reference, request
from tiny_models import save_tiny_qwen3, tiny_qwen3
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GraniteConfig

from opd_verl.fused.rows import Workspace
from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import batch_rows
from opd_verl.teacher.scoring.scorer import Scorer


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("budget", [1, 100, 400, 10**6])
def test_every_token_equals_the_float64_forward_pass(temperature: float, budget: int) -> None:
    model = tiny_qwen3(VOCAB)
    scorer = Scorer(model, LIMIT, temperature, max_tokens_per_batch=budget, chunk_rows=7)
    states = scorer.score(MIXED, topk=4)
    for state, asked in zip(states, MIXED, strict=True):
        log_probs = reference(model, asked, LIMIT, temperature)
        assert_matches(state, asked, log_probs)
        top = log_probs.topk(4, dim=-1)
        assert state.topk_ids is not None and state.topk_log_q is not None
        assert state.topk_ids.dtype == torch.int32 and torch.equal(state.topk_ids.long(), top.indices)
        torch.testing.assert_close(state.topk_log_q.double(), top.values, **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_other_models(tied: bool) -> None:
    model = tiny_qwen3(50, seed=3, tie_word_embeddings=tied)
    asked = request("k", 6, 12, limit=50)
    assert_matches(Scorer(model, 50).score([asked])[0], asked, reference(model, asked, 50))


def test_scores_do_not_depend_on_the_batch() -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT, chunk_rows=16)
    alone = [scorer.score([asked])[0] for asked in MIXED]
    for order in (MIXED, MIXED[::-1]):
        together = dict(zip((asked.key for asked in order), scorer.score(order), strict=True))
        for asked, state in zip(MIXED, alone, strict=True):
            torch.testing.assert_close(together[asked.key].log_q, state.log_q, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[asked.key].hidden, state.hidden, rtol=1e-5, atol=1e-5)


def test_log_q_at_any_ids_equals_the_reference() -> None:
    model = tiny_qwen3(VOCAB)
    scorer = Scorer(model, LIMIT, 0.7, chunk_rows=5)
    generator = torch.Generator().manual_seed(0)
    for asked, state in zip(MIXED, scorer.score(MIXED), strict=True):
        ids = torch.randint(0, LIMIT, (len(asked.response_ids), 6), generator=generator)
        got = scorer.log_q_at(state, ids.int())
        assert got.dtype == torch.float32 and got.shape == ids.shape
        torch.testing.assert_close(got.double(), reference(model, asked, LIMIT, 0.7).gather(-1, ids), **CLOSE)
        sampled = torch.tensor(asked.response_ids)[:, None]
        torch.testing.assert_close(scorer.log_q_at(state, sampled)[:, 0], state.log_q, rtol=1e-5, atol=1e-5)


def test_log_q_at_runs_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT)
    state = scorer.score(MIXED[:1])[0]
    monkeypatch.setattr(scorer, "reader", None)
    assert scorer.log_q_at(state, torch.zeros(50, 3, dtype=torch.int32)).isfinite().all()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT)
    state = scorer.score(MIXED[:1])[0]
    for bad in (LIMIT, -1):
        with pytest.raises(ValueError, match="vocab_limit"):
            scorer.log_q_at(state, torch.full((50, 2), bad))
        with pytest.raises(ValueError, match="vocab_limit"):
            scorer.score([ScoreRequest("k", np.array([1]), np.array([bad]))])
    with pytest.raises(ValueError, match=r"expected \[R, K\] with R=50"):
        scorer.log_q_at(state, torch.zeros(49, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="embeddings"):
        scorer.score([ScoreRequest("k", np.array([VOCAB]), np.array([1]))])
    prompt_may_use_padding_rows = ScoreRequest("k", np.array([VOCAB - 1]), np.array([1]))
    assert scorer.score([prompt_may_use_padding_rows])[0].log_q.isfinite().all()


def test_too_long_names_key_lengths_and_remedy() -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT)
    with pytest.raises(ValueError, match=r"uid_3.*prompt of 30 \+ response of 100.*128.*max_response_length"):
        scorer.score([request("uid_3", 30, 100)])


@pytest.mark.parametrize("budget", [60, 100, 256])
def test_the_token_budget_is_respected(budget: int) -> None:
    model = tiny_qwen3(VOCAB)
    scorer = Scorer(model, LIMIT, max_tokens_per_batch=budget)
    shapes: list[torch.Size] = []
    scorer.body.register_forward_pre_hook(lambda _m, _a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    requests = [request(f"k{i}", 2 + i % 5, 1 + (7 * i) % 40) for i in range(30)] + [request("alone", 20, 100)]
    scorer.score(requests)
    assert all(rows * width <= budget or rows == 1 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == len(requests)
    assert len(shapes) < len(requests) / 2 or budget == 60


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000))
def test_plan_covers_each_request_once_within_the_budget(lengths: Sequence[int], budget: int) -> None:
    batches = batch_rows(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_at_most_chunk_rows_of_logits_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT, chunk_rows=8)
    shapes: list[tuple[int, ...]] = []
    original = Workspace.logits
    monkeypatch.setattr(
        Workspace, "logits", lambda self, h: shapes.append(tuple(self.logits_CV.shape)) or original(self, h)
    )
    scorer.score(MIXED)
    assert max(rows for rows, _ in shapes) == 8 and {ids for _, ids in shapes} == {LIMIT}


def test_a_state_holds_only_its_own_rows() -> None:
    state = Scorer(tiny_qwen3(VOCAB), LIMIT).score(MIXED, topk=2)[1]
    for tensor in (state.hidden, state.logsumexp, state.log_q, state.topk_ids):
        assert tensor is not None and tensor.untyped_storage().nbytes() == tensor.nbytes
    assert state.nbytes == 32 * 4 + 3 * 4 + 2 * 8


def test_nan_weights_are_not_hidden() -> None:
    model = tiny_qwen3(VOCAB)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    state = Scorer(model, LIMIT).score(MIXED[:1])[0]
    assert state.log_q.isnan().all() and state.entropy.isnan().all()


def test_from_pretrained_reads_model_and_tokenizer(tmp_path: Path) -> None:
    path = save_tiny_qwen3(tmp_path, vocab_size=VOCAB, tokenizer_size=LIMIT)
    scorer = Scorer.from_pretrained(path, device="cpu")
    assert scorer.vocab_limit == LIMIT
    assert_matches(scorer.score(MIXED)[0], MIXED[0], reference(tiny_qwen3(VOCAB), MIXED[0], LIMIT))
    half = Scorer.from_pretrained(path, device="cpu", dtype="bfloat16", vocab_limit=VOCAB)
    assert half.vocab_limit == VOCAB and half.score(MIXED)[0].hidden.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="choose one of"):
        Scorer.from_pretrained(path, dtype="float16")


def test_bfloat16_gather_agrees_with_the_whole_head() -> None:
    """Both round the same logit to bf16, so the sampled token has one log-prob, not two."""
    scorer = Scorer(tiny_qwen3(VOCAB).bfloat16(), LIMIT)
    state = scorer.score(MIXED[:1])[0]
    gathered = scorer.log_q_at(state, torch.tensor(MIXED[0].response_ids)[:, None])[:, 0]
    assert ((gathered - state.log_q).abs() < 1e-5).float().mean() > 0.9


@pytest.mark.parametrize(
    "bad", [{"vocab_limit": VOCAB + 1}, {"vocab_limit": 0}, {"temperature": 0.0}, {"chunk_rows": 0}], ids=str
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Scorer(tiny_qwen3(VOCAB), **({"vocab_limit": LIMIT} | bad))


def test_logit_scales_and_soft_caps_are_applied() -> None:
    from transformers import GraniteForCausalLM

    models = [
        build(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), Gemma2ForCausalLM),
        build(CohereConfig(**SMALL, logit_scale=0.25), CohereForCausalLM),
        build(GraniteConfig(**SMALL, logits_scaling=3.0), GraniteForCausalLM),
    ]
    asked = request("k", 6, 12, limit=60)
    for model in models:
        scorer = Scorer(model, 60, temperature=0.7)
        state, log_probs = scorer.score([asked])[0], reference(model, asked, 60, 0.7)
        assert_matches(state, asked, log_probs)
        ids = torch.arange(60).expand(12, 60)
        torch.testing.assert_close(scorer.log_q_at(state, ids).double(), log_probs, rtol=1e-4, atol=1e-4)


def test_unknown_transformations_of_the_logits_are_refused() -> None:
    model = tiny_qwen3(VOCAB)
    for key, value in {"lm_head_multiplier": 0.5, "logits_scaling": 2.0, "logit_scale": "inv_sqrt_d_model"}.items():
        bad = copy.deepcopy(model)
        setattr(bad.config, key, value)
        with pytest.raises(ValueError, match=rf"config\.{key}="):
            Scorer(bad, LIMIT)

    def shrink(_module: Any, _args: Any, logits: Any) -> Any:
        return logits * 0.9

    model.lm_head.register_forward_hook(shrink)
    with pytest.raises(ValueError, match="logits are not"):
        Scorer(model, LIMIT)
