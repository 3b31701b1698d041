"""Responses of the data set instead of the student's: who takes one, which, and what is trained on it."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from agent_loop_harness import output
from credit_harness import EXACT, make_inputs, run
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NonTensorStack
from terms_harness import make_terms
from tiny_models import tiny_tokenizer
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.utils import tensordict_utils as tu

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import OffPolicyConfig
from opd_verl.metrics.step import step_metrics
from opd_verl.objectives.names import Support
from opd_verl.schema import DATA_RESPONSE, OFF_POLICY, OFF_POLICY_TOKENS, ROLLOUT_COLUMNS
from opd_verl.training.rollout import agent_loop
from opd_verl.training.rollout.data_loop import DataResponseLoop
from opd_verl.training.rollout.off_policy import candidates, check_responses, choose, draw, token_ids

NAMES = [f"{step:06d}.{row:05d}/{session}" for step in range(1, 9) for row in range(32) for session in range(4)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_draws_are_uniform_and_belong_to_the_rollout(share: float) -> None:
    taken = [draw(0, name) < share for name in NAMES]
    deviation = (share * (1 - share) / len(NAMES)) ** 0.5
    assert abs(np.mean(taken) - share) < 4 * deviation
    assert taken == [draw(0, name) < share for name in NAMES] != [draw(1, name) < share for name in NAMES]


@given(st.integers(0, 2**31), st.text())
def test_nothing_is_taken_at_share_0_and_everything_at_share_1(seed: int, name: str) -> None:
    assert 0.0 <= draw(seed, name) < 1.0


def test_all_responses_of_a_prompt_are_used() -> None:
    sample = {"responses": ["a", "b", "c"]}
    chosen = [choose(sample, "responses", 0, name) for name in NAMES]
    assert set(chosen) == {"a", "b", "c"} and min(map(chosen.count, "abc")) > len(NAMES) / 3 * 0.8


@pytest.mark.parametrize("sample", [{}, {"r": None}, {"r": []}, {"r": [""]}, {"r": "one text"}, {"r": np.array([])}])
def test_a_prompt_without_responses_names_the_field_and_the_remedy(sample: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"opd\.off_policy\.field=r: sample 7 .*opd_verl\.data rollouts"):
        candidates({"index": 7, **sample}, "r")


def test_token_ids_of_a_text_and_of_ids() -> None:
    tokenizer = tiny_tokenizer(104)
    text = tokenizer.decode([5, 6, 7])
    assert token_ids(text, tokenizer, 10) == [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    assert token_ids(np.array([5, 6, 7]), tokenizer, 10) == [5, 6, 7] == token_ids([5, 6, 7], tokenizer, 3)
    assert token_ids([5, 6, 7], tokenizer, 2) == [5, 6], "cut at data.max_response_length"
    for ids in ([5, 104], [-1, 5]):
        with pytest.raises(ValueError, match="the tokenizer has 104"):
            token_ids(ids, tokenizer, 10)


def asked(worker: Any, monkeypatch: pytest.MonkeyPatch, share: float, validate: bool = False) -> dict[str, Any]:
    """The arguments of verl's `_run_agent_loop` for a row of a rollouts file."""
    seen: dict[str, Any] = {}

    async def run_loop(self: Any, sampling_params: Any, trajectory: Any, **kwargs: Any) -> None:
        seen.update(kwargs)

    from opd_verl import seeded_loop

    monkeypatch.setattr(seeded_loop.VerlWorker, "_run_agent_loop", run_loop)
    worker.off_policy = OffPolicyConfig(share=share)
    row = dict.fromkeys(ROLLOUT_COLUMNS, "of the file") | {"response_ids": [[4, 5]], "agent_name": "single_turn"}
    trajectory = {"step": 1, "sample_index": 0, "validate": validate}
    asyncio.run(worker._run_agent_loop({}, trajectory, uid="u", session_id=0, raw_prompt=[], **row))
    return seen


def test_a_rollout_of_the_data_set_goes_to_our_loop_with_its_response(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(worker, monkeypatch, share=1.0)
    assert seen["agent_name"] == DATA_RESPONSE and seen[DATA_RESPONSE] == [4, 5] and seen[OFF_POLICY].tolist() == [1.0]
    assert not set(ROLLOUT_COLUMNS) & set(seen), "`responses` is verl's name of what was sampled"


def test_the_worker_s_module_brings_the_loop_that_it_names() -> None:
    """Only then does verl know the loop in the worker's process, where nobody else imports its module."""
    assert agent_loop.DataResponseLoop.name in _agent_loop_registry
    assert agent_loop.DataResponseLoop is DataResponseLoop


@pytest.mark.parametrize(("share", "validate"), [(0.0, False), (1.0, True)])
def test_others_are_sampled_as_ever(worker: Any, monkeypatch: pytest.MonkeyPatch, share: float, validate: bool) -> None:
    seen = asked(worker, monkeypatch, share, validate)
    assert seen["agent_name"] == "single_turn" and OFF_POLICY not in seen and not set(ROLLOUT_COLUMNS) & set(seen)


def test_every_row_says_which_it_is_where_both_kinds_can_be(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked(worker, monkeypatch, share=1e-12)
    assert seen["agent_name"] == "single_turn" and seen[OFF_POLICY].tolist() == [0.0]


def test_the_loop_gives_the_prompt_and_the_response_and_samples_nothing(worker: Any) -> None:
    async def initial(messages: list[Any]) -> list[int]:
        return [1, 2]

    loop: Any = object.__new__(DataResponseLoop)
    loop.tokenizer, loop.rollout_config = tiny_tokenizer(104), SimpleNamespace(response_length=3)
    loop.ct_build_initial_tokens = initial
    result = asyncio.run(loop.run({}, raw_prompt=[], global_steps=5, **{DATA_RESPONSE: [4, 5, 6, 7]}))
    assert (result.prompt_ids, result.response_ids, result.response_mask) == ([1, 2], [4, 5, 6], [1, 1, 1])
    assert result.extra_fields["min_global_steps"] == result.extra_fields["max_global_steps"] == 4
    worker.stored = None
    kwargs = {"uid": "u", "session_id": 0, "global_steps": 5, DATA_RESPONSE: [4]}
    asyncio.run(worker._agent_loop_postprocess(output([1], [4]), False, **kwargs))
    assert DATA_RESPONSE not in worker.stored, "what TransferQueue need not hold"


def test_a_batch_is_checked_in_the_driver_where_an_error_ends_the_run() -> None:
    batch = tu.get_tensordict({"index": ["a", "b"], "r": NonTensorStack([[1]], [])})
    with pytest.raises(ValueError, match="sample b"):
        check_responses(batch, "r")
    check_responses(batch[:1], "r")


def mixed_inputs(*off_policy: bool) -> Any:
    inputs = make_inputs()
    rows = torch.zeros(len(inputs.mask), dtype=torch.bool)
    rows[: len(off_policy)] = torch.tensor(off_policy)
    return replace(inputs, off_policy=rows)


def test_the_actor_learns_which_tokens_are_the_data_sets() -> None:
    inputs = mixed_inputs(True, False, True)
    opd = OpdConfig(objective=EXACT, off_policy=OffPolicyConfig(share=0.5, cross_entropy=1.0))
    result = run(opd, inputs)
    assert torch.equal(result.fields[OFF_POLICY_TOKENS], inputs.mask * inputs.off_policy[:, None])
    assert result.metrics["opd/off_policy_share"] == pytest.approx(2 / len(inputs.mask))
    assert OFF_POLICY_TOKENS not in run(OpdConfig(objective=EXACT), make_inputs()).fields


def test_the_reverse_kl_is_that_of_the_students_own_samples() -> None:
    inputs = mixed_inputs(True, True)
    own = replace(inputs, mask=inputs.mask * ~inputs.off_policy[:, None], off_policy=None)
    actual, expected = (step_metrics(item, item.log_q - item.log_p_old) for item in (inputs, own))
    names = ("opd/reward_mean", "opd/reward_min", "opd/reverse_kl")
    assert all(actual[name] == pytest.approx(expected[name]) for name in names)
    nothing = step_metrics(replace(inputs, off_policy=torch.ones(len(inputs.mask), dtype=torch.bool)), inputs.log_q)
    assert not set(names) & set(nothing), "without a sample of the student's there is nothing to say, not 0"


def test_cross_entropy_is_minus_log_p_at_the_data_sets_tokens(p: Tensor, data: dict[str, Tensor]) -> None:
    data[OFF_POLICY_TOKENS] = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    terms = make_terms(Support.teacher_topk, coefficient=0.5, cross_entropy=2.0)
    assert OFF_POLICY_TOKENS in terms.field_names and terms.any
    logits = p.clone().requires_grad_()
    log_p = logits.log_softmax(-1)
    losses = terms.losses(log_p.gather(-1, terms.columns(data)), data)
    assert set(losses) == {"divergence", "cross_entropy"}
    expected = -torch.stack([p[row, token] for row, token in enumerate(data["responses"].tolist())])
    assert torch.allclose(losses["cross_entropy"].double(), expected * data[OFF_POLICY_TOKENS])
    (gradient,) = torch.autograd.grad(losses["cross_entropy"].sum(), logits)
    one_hot = torch.nn.functional.one_hot(data["responses"].long(), p.shape[-1])
    assert torch.allclose(gradient, (p.exp() - one_hot) * data[OFF_POLICY_TOKENS][:, None].double(), atol=1e-6)


def test_without_the_factor_the_terms_are_what_they_were(p: Tensor, data: dict[str, Tensor]) -> None:
    assert OFF_POLICY_TOKENS not in make_terms(Support.teacher_topk).field_names
    assert not make_terms(Support.sampled).any and make_terms(Support.sampled, cross_entropy=1.0).any
