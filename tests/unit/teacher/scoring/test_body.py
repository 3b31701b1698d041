"""Packed, padded or with each prompt read once: the same hidden states; and which requests are read together."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scorer_harness import CLOSE, LIMIT, MIXED, VOCAB, assert_matches, reference, request
from tiny_models import tiny_qwen3
from transformers import Gemma2Config, Qwen3Config

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import SHARING_PAYS, batch_requests, batch_rows, fed_tokens, shared_saving
from opd_verl.teacher.scoring.body import can_share, is_packing, read_packed, read_padded, read_shared
from opd_verl.teacher.scoring.scorer import Scorer

MODEL = tiny_qwen3(VOCAB)
CPU = torch.device("cpu")


def siblings(prompt: int, *responses: int) -> list[ScoreRequest]:
    """Rollouts of one prompt."""
    prompts = request("p", prompt, 1).prompt_ids
    answers = [request("r", 1, length, seed=index).response_ids for index, length in enumerate(responses)]
    return [ScoreRequest(f"{prompt}_{index}", prompts, answer) for index, answer in enumerate(answers)]


FAMILIES = [*siblings(40, 5, 60, 1, 17), *siblings(1, 9, 2), *siblings(3, 30)]


@torch.inference_mode()
def rows(read: Any, requests: list[ScoreRequest]) -> torch.Tensor:
    return read(MODEL.get_decoder(), requests, CPU)


@pytest.mark.parametrize("read", [read_packed, read_shared])
@pytest.mark.parametrize(
    "requests", [FAMILIES, siblings(20, 1, 1), siblings(5, 8), [r for r in MIXED if r.key != "empty"]]
)
def test_every_way_of_reading_gives_the_same_hidden_states(read: Any, requests: list[ScoreRequest]) -> None:
    actual = rows(read, requests)
    assert actual.shape == (sum(len(r.response_ids) for r in requests), 32)
    torch.testing.assert_close(actual, rows(read_padded, requests), rtol=2e-5, atol=2e-5)


def test_rollouts_of_one_prompt_share_it_and_score_as_in_float64() -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT, max_tokens_per_batch=400, chunk_rows=16)
    read: list[int] = []
    scorer.body.register_forward_pre_hook(lambda _m, _a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    requests = siblings(60, *[8] * 12)
    states = scorer.score(requests)
    assert sum(read) == 3 * 60 + 12 * 7, "batches of five, five and two; each read the prompt once"
    for asked, state in zip(requests, states, strict=True):
        assert_matches(state, asked, reference(MODEL, asked, LIMIT))


def test_what_saves_little_is_not_shared() -> None:
    scorer = Scorer(tiny_qwen3(VOCAB), LIMIT)
    read: list[int] = []
    scorer.body.register_forward_pre_hook(lambda _m, _a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    scorer.score(siblings(4, 60, 60))
    assert read == [2 * 63]


def test_sliding_windows_and_flash_attention_are_told_from_their_configs() -> None:
    assert can_share(Qwen3Config()) and not can_share(Gemma2Config(num_hidden_layers=2))
    config = Qwen3Config()
    assert not is_packing(config)
    config._attn_implementation = "flash_attention_2"
    assert is_packing(config)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), max_size=25),
    st.integers(1, 80),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200)
def test_plans_cover_every_request_once_within_the_budget(
    sizes: list[tuple[int, int]], budget: int, padded: bool, share: bool
) -> None:
    requests = [ScoreRequest(f"{p}_{i}", np.arange(p), np.arange(r)) for i, (p, r) in enumerate(sizes)]
    plan = batch_requests(requests, budget, padded, share)
    assert sorted(index for batch in plan for index in batch) == list(range(len(requests))) and all(plan)
    for batch in plan:
        fed = [fed_tokens(requests[index]) for index in batch]
        cost = len(fed) * max(fed) if padded or (share and shared_saving(requests) >= SHARING_PAYS) else sum(fed)
        assert cost <= budget or len(batch) == 1


def test_packed_rows_fill_the_budget_that_padding_would_waste() -> None:
    lengths = [10, 1, 1, 1, 1, 1]
    assert len(batch_rows(lengths, 15, padded=False)) == 1 and len(batch_rows(lengths, 15)) == 2


def test_close_is_tight() -> None:
    """The comparison above can fail: other positions give other hidden states."""
    shifted = [ScoreRequest(r.key, np.append(r.prompt_ids, 1), r.response_ids) for r in FAMILIES]
    assert not torch.allclose(rows(read_shared, shifted), rows(read_shared, FAMILIES), **CLOSE)
