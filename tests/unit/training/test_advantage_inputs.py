"""The inputs of the advantage step, and the supports made of both sides' top-k."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tiny_models import save_tiny_qwen3
from torch import Tensor
from transformers import GenerationConfig

from opd_verl.config.sections import TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.objectives.names import Support, Truncation
from opd_verl.schema import JOINT_FIELDS, STUDENT_FIELDS, TEACHER_FIELDS
from opd_verl.training.advantage_inputs import (
    ADVANTAGE_FIELDS,
    end_ids,
    is_truncated,
    joint_support,
    observed,
    reward_inputs,
    task_rewards,
)
from opd_verl.training.token_positions import row_lengths

LIMIT, EOS, OTHER_EOS, V = 4, 7, 9, 20
RESPONSES = [[1, 2, 3, EOS], [1, 2, 3, 4], [1, EOS], [EOS, 2, 3, OTHER_EOS], [5, 6], [EOS, 1, 1, 1]]
LENGTHS = [len(row) for row in RESPONSES]
JOINT = [Support.union, Support.intersection, Support.symmetric_difference]


def nested(rows: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def responses() -> Tensor:
    return nested(RESPONSES, torch.int64)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({EOS}, [False, True, False, True, False, True]),
        ({OTHER_EOS}, [True, True, False, False, False, True]),
        ({EOS, OTHER_EOS}, [False, True, False, False, False, True]),
        (set(), [True, True, False, True, False, True]),
    ],
)
def test_a_rollout_is_cut_where_it_reached_the_limit_without_an_end(ends: set[int], expected: list[bool]) -> None:
    assert is_truncated(responses(), LIMIT, ends).tolist() == expected


def test_a_higher_limit_cuts_nobody() -> None:
    assert not is_truncated(responses(), LIMIT + 1, {EOS}).any()


@pytest.mark.parametrize(("own", "expected"), [(None, {1}), (5, {1, 5}), ([5, 6], {1, 5, 6})], ids=str)
def test_the_ends_are_the_tokenizers_and_the_generation_configs(
    tmp_path: Path, own: int | list[int] | None, expected: set[int]
) -> None:
    path = save_tiny_qwen3(tmp_path / "model")
    GenerationConfig(eos_token_id=own).save_pretrained(path)
    tokenizer = SimpleNamespace(eos_token_id=1)
    assert end_ids(path, tokenizer, trust_remote_code=False) == expected
    assert end_ids(path, SimpleNamespace(eos_token_id=None), trust_remote_code=False) == expected - {1}


@pytest.fixture
def data() -> Any:
    """The fields of a run that reads both top-k, as TransferQueue gives them."""
    generator = torch.Generator().manual_seed(2)
    fields: dict[str, Tensor] = {
        "responses": responses(),
        "response_mask": nested([torch.randint(2, (n,), generator=generator) for n in LENGTHS], torch.int64),
        "rm_scores": nested([[0.0] * (n - 1) + [row - 2.0] for row, n in enumerate(LENGTHS)]),
    }
    for name in ("old_log_probs", "entropy", "teacher_log_probs", "teacher_entropy"):
        fields[name] = nested([torch.rand(n, generator=generator) for n in LENGTHS])
    for where, width in ((STUDENT_FIELDS, 3), (TEACHER_FIELDS, 3)):
        fields[where.ids] = nested(
            [torch.stack([torch.randperm(6, generator=generator)[:width] for _ in range(n)]) for n in LENGTHS],
            torch.int32,
        )
        for name in (where.log_q, where.log_p_old):
            fields[name] = nested([-torch.rand(n, width, generator=generator) - 1.0 for n in LENGTHS])
    assert set(fields) == set(ADVANTAGE_FIELDS)
    return TensorDict(fields, batch_size=len(LENGTHS))


SOURCES = {
    "log_p_old": "old_log_probs",
    "log_q": "teacher_log_probs",
    "mask": "response_mask",
    "student_entropy": "entropy",
    "teacher_entropy": "teacher_entropy",
    "log_p_topk": STUDENT_FIELDS.log_p_old,
    "log_q_topk": STUDENT_FIELDS.log_q,
}


def test_reward_inputs_are_the_fields_padded(data: Any) -> None:
    tokens = TokenConfig(truncated=Truncation.mask)
    inputs = reward_inputs(data, tokens, LIMIT, {EOS})
    for name, source in SOURCES.items():
        padded = getattr(inputs, name)
        assert padded.shape[:2] == (6, 4) and not padded.requires_grad
        for row, values in enumerate(data[source].unbind()):
            assert torch.equal(padded[row, : len(values)], values), name
            assert not padded[row, len(values) :].any(), name
    assert inputs.task_score.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert inputs.correct is not None and inputs.correct.tolist() == [False, False, False, True, True, True]
    assert inputs.truncated is not None and inputs.truncated.tolist() == [False, True, False, True, False, True]
    assert inputs.tokens is tokens
    expected = torch.nested.to_padded_tensor(data["rm_scores"], 0.0)
    assert torch.equal(task_rewards(data), expected)


@pytest.mark.parametrize("policy", Truncation)
def test_only_drop_takes_rollouts_out_of_the_mask(data: Any, policy: Truncation) -> None:
    mask = reward_inputs(data, TokenConfig(truncated=policy), LIMIT, {EOS}).mask
    dropped = [policy is Truncation.drop and row in (1, 3, 5) for row in range(len(LENGTHS))]
    for row, values in enumerate(data["response_mask"].unbind()):
        assert torch.equal(mask[row, : len(values)], values * (not dropped[row]))
    assert mask.dtype == torch.int64


def test_reward_inputs_without_the_optional_fields(data: Any) -> None:
    few = data.select("responses", "response_mask", "rm_scores", "old_log_probs", "entropy", "teacher_log_probs",
                      "teacher_entropy")  # fmt: skip
    inputs = reward_inputs(few, TokenConfig(), LIMIT, {EOS})
    assert inputs.log_p_topk is None and inputs.log_q_topk is None
    assert joint_support(few, Support.sampled, 0) == ({}, {})


def naive_support(student: list[int], teacher: list[int], support: Support) -> set[int]:
    first, second = set(student), set(teacher)
    return {
        Support.union: first | second,
        Support.intersection: first & second,
        Support.symmetric_difference: first ^ second,
    }[support]


@pytest.mark.parametrize("support", JOINT)
@pytest.mark.parametrize("k", [3, 2])
def test_joint_supports_against_brute_force(data: Any, support: Support, k: int) -> None:
    """With k 2 the teacher was asked for more ids (by the forward KL) than the objective reads."""
    if k == 2:
        for name in vars(STUDENT_FIELDS).values():
            data[name] = nested([row[:, :k] for row in data[name].unbind()], data[name].dtype)
    fields, metrics = joint_support(data, support, k)
    assert set(fields) == set(vars(JOINT_FIELDS).values())
    assert all(row_lengths(value).tolist() == LENGTHS for value in fields.values())
    mask = data["response_mask"].values().bool()
    sizes = []
    blocks = {name: [data[getattr(where, name)].values() for where in (STUDENT_FIELDS, TEACHER_FIELDS)]
              for name in ("ids", "log_q", "log_p_old")}  # fmt: skip
    for t in range(sum(LENGTHS)):
        student, teacher = blocks["ids"][0][t].tolist(), blocks["ids"][1][t, :k].tolist()
        ids = fields[JOINT_FIELDS.ids].values()[t].tolist()
        there = [i for i in ids if i >= 0]
        assert len(there) == len(set(there)) and set(there) == naive_support(student, teacher, support)
        for name in ("log_q", "log_p_old"):
            values = fields[getattr(JOINT_FIELDS, name)].values()[t]
            known = dict(zip(teacher, blocks[name][1][t, :k].tolist(), strict=True))
            known |= dict(zip(student, blocks[name][0][t].tolist(), strict=True))  # a shared id is the student's column
            assert [values[c].item() for c, i in enumerate(ids) if i >= 0] == [known[i] for i in there]
            assert values.isfinite().all(), "also where there is no member"
        sizes.append(len(there))
    assert metrics == {"opd/support_size": pytest.approx(torch.tensor(sizes).float()[mask].mean().item())}


@pytest.mark.parametrize("support", [item for item in Support if item not in JOINT])
def test_other_supports_have_no_fields_of_their_own(data: Any, support: Support) -> None:
    assert joint_support(data, support, 3) == ({}, {})


def inputs_of(data: Any) -> RewardInputs:
    """Inputs of the hooks: only the mask matters here."""
    mask = data["response_mask"].to_padded_tensor(0)
    return RewardInputs(mask.float(), mask.float(), mask, mask.float(), mask[:, 0])


def test_the_overlap_of_a_step_stands_at_each_tokens_place(data: Any) -> None:
    """A teacher's top 2 is compared with as many of the student's 3 (Rethinking eq. 6 compares equal k)."""
    for name in vars(TEACHER_FIELDS).values():
        data[name] = nested([row[:, :2] for row in data[name].unbind()], data[name].dtype)
    actual = observed(data, inputs_of(data)).overlap
    assert actual is not None and actual.ratio.shape == (len(LENGTHS), max(LENGTHS))
    blocks = (data[where.ids].unbind() for where in (STUDENT_FIELDS, TEACHER_FIELDS))
    for row, (student, teacher) in enumerate(zip(*blocks, strict=True)):
        by_hand = [len(set(a) & set(b)) / 2 for a, b in zip(student[:, :2].tolist(), teacher.tolist(), strict=True)]
        assert actual.ratio[row, : len(student)].tolist() == pytest.approx(by_hand)
        assert (actual.ratio[row, len(student) :] == 0).all()


@pytest.mark.parametrize("absent", [STUDENT_FIELDS, TEACHER_FIELDS])
def test_with_one_side_alone_there_is_nothing_to_compare(data: Any, absent: Any) -> None:
    assert observed(data.exclude(absent.ids), inputs_of(data)).overlap is None


def test_a_step_without_tokens(data: Any) -> None:
    data["response_mask"] = nested([[0] * n for n in LENGTHS], torch.int64)
    _, metrics = joint_support(data, Support.union, 3)
    assert metrics == {"opd/support_size": 0.0}
