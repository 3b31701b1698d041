"""Teacher scores as fields of the batch: asked for, merged, and masked with neutral values where they are missing."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue
from tensordict import TensorDict
from torch import Tensor

from opd_verl.schema import STUDENT_FIELDS, TEACHER_FIELDS, TEACHER_HIDDEN
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.training.teacher_scores import collect_scores, merge, missing_like, teacher_fields, teacher_topk_fields
from opd_verl.training.token_positions import row_lengths

LENGTHS, K, T, H = [3, 1, 2], 2, 4, 5  # the last row is one of verl's padding rows
MASK = [[1, 0, 1], [1], [0, 0]]
Store = dict[str, Tensor]


def nested(rows: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """TransferQueue in memory, after the log-prob pass; the tests of tests/e2e run the real one."""
    generator = torch.Generator().manual_seed(9)
    store = {
        "prompts": nested([[5, 6], [7], [1]], torch.int64),
        "responses": nested([[10, 11, 12], [20], [1, 1]], torch.int64),
        "response_mask": nested(MASK, torch.int64),
        "loss_mask": nested(MASK, torch.int64),
        "old_log_probs": nested([-torch.rand(n, generator=generator) for n in LENGTHS]),
        "entropy": nested([torch.rand(n, generator=generator) for n in LENGTHS]),
        STUDENT_FIELDS.ids: nested([torch.randint(30, (n, K), generator=generator) for n in LENGTHS], torch.int32),
        STUDENT_FIELDS.log_p_old: nested([-torch.rand(n, K, generator=generator) - 0.7 for n in LENGTHS]),
    }

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        assert partition_id == "train"
        return TensorDict({name: store[name] for name in select_fields if name in store}, batch_size=len(keys))

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    return store


@pytest.fixture
def batch() -> Any:
    keys = ["a_0_0", "b_0_0", "pad_0_0"]
    return SimpleNamespace(keys=keys, partition_id="train", tags=[{}, {"is_padding": False}, {"is_padding": True}])


def score(length: int, seed: int, topk: int = 0, at_ids: int = 0, hidden: int = 0, **changes: Any) -> TeacherScore:
    """A complete score; half-precision where the wire may use it."""
    generator = torch.Generator().manual_seed(seed)
    fields: dict[str, Any] = {
        "log_q": -torch.rand(length, generator=generator),
        "valid": torch.ones(length, dtype=torch.bool),
        "entropy": torch.rand(length, generator=generator) + 3.0,
    }
    if topk:
        fields["topk_ids"] = torch.randint(30, (length, topk), generator=generator).int()
        fields["topk_log_q"] = (-torch.rand(length, topk, generator=generator) - 5.0).half()
    if at_ids:
        fields["at_ids_log_q"] = (-torch.rand(length, at_ids, generator=generator) - 5.0).half()
    if hidden:
        fields["hidden"] = torch.randn(length, hidden, generator=generator).bfloat16()
    return TeacherScore(**fields | changes)


class Teacher:
    """Answers with `score`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[CollectSpec] = []

    def collect(
        self, requests: list[ScoreRequest], at_ids: list[np.ndarray] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        self.requests, self.at_ids = requests, at_ids
        self.asked.append(spec)
        widths = {"topk": spec.topk, "at_ids": K if at_ids else 0, "hidden": H if spec.hidden else 0}
        return [score(len(request.response_ids), row, **widths) for row, request in enumerate(requests)]


@pytest.mark.parametrize("topk", [0, T])
@pytest.mark.parametrize("at_student_topk", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_is_asked_is_answered_row_by_row(
    store: Store, batch: Any, topk: int, at_student_topk: bool, hidden: bool
) -> None:
    teacher: Any = Teacher()
    asked = {"topk": topk, "hidden": hidden, "entropy": not hidden}
    scores = collect_scores(batch, teacher, 4, at_student_topk=at_student_topk, **asked)
    assert teacher.asked == [CollectSpec(4, **asked)]
    assert [request.key for request in teacher.requests] == ["a_0_0", "b_0_0"], "padding rows are not sent"
    assert [request.prompt_ids.tolist() for request in teacher.requests] == [[5, 6], [7]]
    assert [request.response_ids.tolist() for request in teacher.requests] == [[10, 11, 12], [20]]
    if at_student_topk:
        expected = [row.tolist() for row in store[STUDENT_FIELDS.ids].unbind()[:2]]
        assert [ids.tolist() for ids in teacher.at_ids] == expected
        assert all(ids.dtype == np.int32 for ids in teacher.at_ids)
    else:
        assert teacher.at_ids is None
    assert [item.length for item in scores] == LENGTHS and [bool(item.valid.all()) for item in scores] == [
        True,
        True,
        False,
    ]
    for name in ("topk_ids", "topk_log_q", "at_ids_log_q", "hidden"):
        there, padding = getattr(scores[0], name), getattr(scores[2], name)
        assert (there is None) == (padding is None)
        assert there is None or there.shape[1:] == padding.shape[1:]


def test_padding_anywhere_in_the_batch(store: Store, batch: Any) -> None:
    batch.tags = [{"is_padding": True}, {}, {}]
    teacher: Any = Teacher()
    scores = collect_scores(batch, teacher, 0)
    assert [request.key for request in teacher.requests] == ["b_0_0", "pad_0_0"]
    assert [bool(item.valid.all()) for item in scores] == [False, True, True] and [s.length for s in scores] == LENGTHS
    assert torch.equal(scores[1].log_q, score(1, 0).log_q)


@pytest.mark.parametrize(
    "widths", [{}, {"topk": T}, {"at_ids": K}, {"hidden": H}, {"topk": T, "at_ids": K, "hidden": H}]
)
def test_a_missing_score_has_the_others_fields(widths: dict[str, int]) -> None:
    like = score(3, 0, **widths)
    missing = missing_like(like, 7)
    assert missing.length == 7 and not missing.valid.any()
    for name, value in vars(like).items():
        empty = getattr(missing, name)
        assert (value is None) == (empty is None), name
        assert value is None or empty.shape == (7, *value.shape[1:]), name
    assert missing.hidden is None or missing.hidden.dtype == torch.bfloat16


def test_a_merged_token_is_valid_where_both_answers_are() -> None:
    early = [score(3, 0, topk=T, hidden=H, valid=torch.tensor([True, False, True])), score(2, 1, topk=T, hidden=H)]
    late = [score(3, 2, at_ids=K, valid=torch.tensor([False, True, True])), TeacherScore.missing(2, at_ids=K)]
    merged_scores = merge(early, late)
    assert [item.valid.tolist() for item in merged_scores] == [[False, False, True], [False, False]]
    for item, first, second in zip(merged_scores, early, late, strict=True):
        for name in ("log_q", "entropy", "topk_ids", "topk_log_q", "hidden"):
            assert torch.equal(getattr(item, name), getattr(first, name)), name
        assert item.at_ids_log_q is second.at_ids_log_q
    assert [item.valid.tolist() for item in early] == [[True, False, True], [True, True]], "the parts stay as they were"


def complete(**widths: int) -> list[TeacherScore]:
    like = score(LENGTHS[0], 0, **widths)
    return [like, score(LENGTHS[1], 1, **widths), missing_like(like, LENGTHS[2])]


ALL = {"topk": T, "at_ids": K, "hidden": H}
FIELD_OF = {
    "log_q": "teacher_log_probs",
    "entropy": "teacher_entropy",
    "at_ids_log_q": STUDENT_FIELDS.log_q,
    "topk_log_q": TEACHER_FIELDS.log_q,
    "hidden": TEACHER_HIDDEN,
}


def test_a_complete_teacher(store: Store, batch: Any) -> None:
    scores = complete(**ALL)
    fields, metrics = teacher_fields(batch, scores)
    assert metrics == {"opd/teacher_missing_share": 0.0}, "the padding row is masked already: nothing is missing"
    assert set(fields) == {*FIELD_OF.values(), "teacher_valid"}
    for name, field in FIELD_OF.items():
        assert row_lengths(fields[field]).tolist() == LENGTHS
        for row in (0, 1):
            expected = getattr(scores[row], name)
            assert torch.equal(fields[field].unbind()[row], expected if name == "hidden" else expected.float()), name
    assert [row.tolist() for row in fields["teacher_valid"].unbind()] == [[1, 1, 1], [1], [0, 0]]


@pytest.mark.parametrize("widths", [{}, {"topk": T}, {"at_ids": K}, {"hidden": H}])
def test_only_what_was_asked_for_becomes_a_field(store: Store, batch: Any, widths: dict[str, int]) -> None:
    names = {"topk": TEACHER_FIELDS.log_q, "at_ids": STUDENT_FIELDS.log_q, "hidden": TEACHER_HIDDEN}
    fields, _ = teacher_fields(batch, complete(**widths))
    expected = {"teacher_log_probs", "teacher_entropy", "teacher_valid"} | {names[name] for name in widths}
    assert set(fields) == expected


@pytest.mark.parametrize("name", FIELD_OF)
def test_one_missing_value_masks_its_token_in_every_field(store: Store, batch: Any, name: str) -> None:
    """Row 0, token 2 lost one value: all fields are neutral there, and the token leaves the denominators."""
    scores = complete(**ALL)
    broken: dict[str, Any] = dict(vars(scores[0]))
    broken[name] = broken[name].clone()
    broken[name][2, ...] = math.nan
    scores[0] = TeacherScore(**broken)
    fields, metrics = teacher_fields(batch, scores)
    assert metrics["opd/teacher_missing_share"] == pytest.approx(1 / 3)
    for mask in ("response_mask", "loss_mask"):
        assert [row.tolist() for row in fields[mask].unbind()] == [[1, 0, 0], [1], [0, 0]]
        assert fields[mask].dtype == store[mask].dtype
    lost = torch.tensor([False, False, True, False, True, True])
    neutral = {
        "teacher_log_probs": store["old_log_probs"].values()[lost],
        "teacher_entropy": store["entropy"].values()[lost],
        STUDENT_FIELDS.log_q: store[STUDENT_FIELDS.log_p_old].values()[lost],
        TEACHER_FIELDS.log_q: torch.full((3, T), -math.log(T)),
        TEACHER_HIDDEN: torch.zeros(3, H, dtype=torch.bfloat16),
    }
    for field, expected in neutral.items():
        values = fields[field].values()
        assert values.isfinite().all() and torch.equal(values[lost], expected), field
        assert not torch.equal(values[~lost][:1].float(), expected[:1].float()), field
    assert fields["teacher_valid"].values().tolist() == [1, 1, 0, 1, 0, 0]


def test_a_masked_token_without_a_score_is_not_missing(store: Store, batch: Any) -> None:
    scores = complete()
    scores[0] = score(3, 0, valid=torch.tensor([True, False, True]))  # token 1 has mask 0 already
    fields, metrics = teacher_fields(batch, scores)
    assert metrics == {"opd/teacher_missing_share": 0.0} and "response_mask" not in fields


def test_a_teacher_without_any_score_ends_the_run(store: Store, batch: Any) -> None:
    scores = [TeacherScore.missing(length) for length in LENGTHS]
    with pytest.raises(RuntimeError, match="no valid score for 3 of this step's 3 response tokens"):
        teacher_fields(batch, scores)


def test_more_missing_tokens_than_allowed_end_the_run(store: Store, batch: Any) -> None:
    scores = complete()
    scores[1] = TeacherScore.missing(LENGTHS[1])  # 1 of the 3 tokens with mask 1
    fields, metrics = teacher_fields(batch, scores, max_missing_share=0.34)
    assert fields["teacher_valid"].values().sum() == 3
    assert metrics == {"opd/teacher_missing_share": 1 / 3}
    with pytest.raises(RuntimeError, match=r"for 1 of .* 3 response tokens, above opd.teacher.max_missing_share=0.33"):
        teacher_fields(batch, scores, max_missing_share=0.33)


def test_a_step_without_tokens_does_not_blame_the_teacher(store: Store, batch: Any) -> None:
    store["response_mask"] = nested([[0] * n for n in LENGTHS], torch.int64)
    _, metrics = teacher_fields(batch, [TeacherScore.missing(length) for length in LENGTHS])
    assert metrics == {"opd/teacher_missing_share": 0.0}


def test_a_value_that_only_some_rows_have_is_a_bug(store: Store, batch: Any) -> None:
    scores = complete(topk=T)
    scores[1] = score(LENGTHS[1], 1)
    with pytest.raises(AssertionError, match="left out a value"):
        teacher_fields(batch, scores)


def test_the_teachers_ids_for_the_log_prob_pass(store: Store, batch: Any) -> None:
    """The student is read at these ids: where there are none, at id 0, which exists."""
    scores = complete(topk=T)
    fields = teacher_topk_fields(batch, scores)
    assert list(fields) == [TEACHER_FIELDS.ids]
    rows = fields[TEACHER_FIELDS.ids].unbind()
    for row in (0, 1):
        expected = scores[row].topk_ids
        assert expected is not None and torch.equal(rows[row], expected)
    assert rows[2].tolist() == [[0] * T] * 2 and rows[2].dtype == torch.int32
