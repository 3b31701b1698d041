"""From teacher scores to rewards: hooks, fields with missing teacher values, and the step's metrics."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue
from tensordict import TensorDict
from torch import Tensor

from opd_verl.fields import ADVANTAGE_FIELDS, collect_scores, reward_inputs, teacher_fields
from opd_verl.hooks import REWARD_HOOKS, RewardInputs, register_reward, total_reward
from opd_verl.metrics.step import step_metrics
from opd_verl.teacher.score import ScoreRequest, TeacherScore

LENGTHS, K = [3, 1, 2], 2  # the last row is one of verl's padding rows
MASK = [[1, 0, 1], [1], [0, 0]]


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Hooks that a test registers do not outlive it."""
    before = dict(REWARD_HOOKS)
    yield
    REWARD_HOOKS.clear()
    REWARD_HOOKS.update(before)


def example_inputs(**changes: Any) -> RewardInputs:
    generator = torch.Generator().manual_seed(5)
    shape = (2, 3)
    inputs = {
        "log_p_old": -torch.rand(shape, generator=generator),
        "log_q": -torch.rand(shape, generator=generator),
        "mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "student_entropy": torch.rand(shape, generator=generator),
        "task_score": torch.tensor([1.0, 0.0]),
    }
    return RewardInputs(**(inputs | changes))


def test_the_sum_of_the_named_hooks_is_the_reward() -> None:
    @register_reward("one")
    def one(inputs: RewardInputs) -> Tensor:
        return torch.ones_like(inputs.log_q)

    @register_reward("depth")
    def depth(inputs: RewardInputs) -> Tensor:
        inputs.metrics["opd/depth"] = 2.5
        return inputs.position * 10.0

    inputs = example_inputs()
    assert torch.equal(total_reward(inputs, ["one", "depth"]), torch.tensor([[1.0, 11.0, 21.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(total_reward(inputs, ["one", "one"]), 2.0 * inputs.mask)
    assert torch.equal(total_reward(inputs, []), torch.zeros(2, 3))
    assert step_metrics(inputs, total_reward(inputs, ["depth"]))["opd/depth"] == 2.5


def test_a_name_is_taken_once() -> None:
    hook = register_reward("mine")(lambda inputs: inputs.log_q)
    assert register_reward("mine")(hook) is hook  # a module imported twice
    with pytest.raises(ValueError, match="'mine' is already registered"):
        register_reward("mine")(lambda inputs: inputs.log_p_old)
    with pytest.raises(ValueError, match="'reverse_kl'"):
        register_reward("reverse_kl")(lambda inputs: inputs.log_q)
    assert REWARD_HOOKS["mine"] is hook


def test_wrong_shape_names_the_hook() -> None:
    register_reward("per_row")(lambda inputs: inputs.task_score)
    with pytest.raises(ValueError, match=r"'per_row' returned \(2,\), expected \(2, 3\)"):
        total_reward(example_inputs(), ["reverse_kl", "per_row"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_rewards(value: float) -> None:
    masked, seen = torch.zeros(2, 3), torch.zeros(2, 3)
    masked[1, 1], seen[0, 2] = value, value
    register_reward("masked")(lambda inputs: masked)
    register_reward("seen")(lambda inputs: seen)
    assert not total_reward(example_inputs(), ["masked"]).any()
    with pytest.raises(ValueError, match=r"'seen'.* not finite on 1 tokens"):
        total_reward(example_inputs(), ["masked", "seen"])


def test_reverse_kl() -> None:
    """log(0.25 / 0.5), log(0.5 / 0.25), masked; nothing where the teacher agrees."""
    log_p, log_q = torch.tensor([[0.5, 0.25, 0.1]]).log(), torch.tensor([[0.25, 0.5, 0.9]]).log()
    inputs = example_inputs(log_p_old=log_p, log_q=log_q, mask=torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(total_reward(inputs, ["reverse_kl"]), torch.tensor([[-1.0, 1.0, 0.0]]) * math.log(2))
    assert not total_reward(example_inputs(log_q=example_inputs().log_p_old), ["reverse_kl"]).any()


def test_reverse_kl_baseline() -> None:
    p, q = torch.tensor([0.6, 0.3]), torch.tensor([0.2, 0.7])
    topk = {"log_p_topk": p.log().expand(2, 3, 2), "log_q_topk": q.log().expand(2, 3, 2)}
    expected = -(0.6 * math.log(0.2 / 0.6) + 0.3 * math.log(0.7 / 0.3))
    reward = total_reward(example_inputs(**topk), ["reverse_kl_baseline"])
    torch.testing.assert_close(reward, expected * example_inputs().mask)
    for name in topk:
        with pytest.raises(ValueError, match=r"set opd\.objective\.k"):
            total_reward(example_inputs(**(topk | {name: None})), ["reverse_kl_baseline"])


def test_position() -> None:
    assert example_inputs().position.tolist() == [[0, 1, 2], [0, 1, 2]]


class Store(dict[str, Tensor]):
    """transfer_queue's batch calls on nested tensors in memory; a field that is not there is left out, as there."""

    def get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:  # type: ignore[override]
        assert partition_id == "train"
        return TensorDict({name: self[name] for name in select_fields if name in self}, batch_size=len(keys))

    def put(self, fields: dict[str, Tensor]) -> None:
        self.update(fields)


def nested(rows: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three rows after the log-prob pass, in the layout of verl's agent loop."""
    generator = torch.Generator().manual_seed(9)
    store = Store(
        prompts=nested([[5, 6], [7], [1]], torch.int64),
        responses=nested([[10, 11, 12], [20], [1, 1]], torch.int64),
        response_mask=nested(MASK, torch.int64),
        loss_mask=nested(MASK, torch.int64),
        rm_scores=nested([[0.0, 0.0, 1.0], [-1.0], [0.0, 0.0]]),
    )
    for name in ("old_log_probs", "entropy"):
        rows = [torch.rand(length, generator=generator) for length in LENGTHS]
        store[name] = nested([(-row if name == "old_log_probs" else row).tolist() for row in rows])
    ids = [torch.randint(30, (length, K), generator=generator) for length in LENGTHS]
    store["student_topk_ids"] = nested([row.tolist() for row in ids], torch.int32)
    rows = [-torch.rand(length, K, generator=generator) - 0.7 for length in LENGTHS]
    store["student_topk_log_probs"] = nested([row.tolist() for row in rows])
    monkeypatch.setattr(transfer_queue, "kv_batch_get", store.get)
    return store


@pytest.fixture
def batch() -> SimpleNamespace:
    return SimpleNamespace(keys=["a_0", "b_0", "pad_0"], partition_id="train", tags=[{}, {}, {"is_padding": True}])


class Teacher:
    """Scores row i as log q = -(10 i + t), H = i + 1, and remembers what it was asked."""

    def collect(self, requests: list[ScoreRequest], at_ids: list[np.ndarray] | None, step: int) -> list[TeacherScore]:
        self.requests, self.at_ids, self.step = requests, at_ids, step
        scores = []
        for index, request in enumerate(requests):
            length = len(request.response_ids)
            asked = None if at_ids is None else torch.from_numpy(-0.01 * at_ids[index] - 1.0).half()
            log_q = -10.0 * index - torch.arange(length, dtype=torch.float32)
            entropy, valid = torch.full((length,), index + 1.0), torch.ones(length, dtype=torch.bool)
            scores.append(TeacherScore(log_q=log_q, valid=valid, entropy=entropy, at_ids_log_q=asked))
        return scores


@pytest.mark.parametrize("with_topk", [True, False])
def test_padding_rows_are_not_sent(store: Store, batch: Any, with_topk: bool) -> None:
    teacher: Any = Teacher()
    scores = collect_scores(batch, teacher, 4, with_topk)
    assert [request.key for request in teacher.requests] == ["a_0", "b_0"] and teacher.step == 4
    assert [request.prompt_ids.tolist() for request in teacher.requests] == [[5, 6], [7]]
    assert [request.response_ids.tolist() for request in teacher.requests] == [[10, 11, 12], [20]]
    assert [score.length for score in scores] == LENGTHS
    assert not scores[2].valid.any() and scores[0].valid.all() and scores[1].valid.all()
    if not with_topk:
        assert teacher.at_ids is None and scores[2].at_ids_log_q is None
        return
    expected = [row.tolist() for row in store["student_topk_ids"].unbind()[:2]]
    assert [ids.tolist() for ids in teacher.at_ids] == expected
    assert scores[2].at_ids_log_q.shape == (2, K)


def test_fields_of_a_complete_teacher(store: Store, batch: Any) -> None:
    metrics: dict[str, float] = {}
    fields = teacher_fields(batch, collect_scores(batch, Teacher(), 0, True), metrics)  # type: ignore[arg-type]
    assert metrics == {"opd/teacher_missing_share": 0.0}  # the padding row is masked already: nothing is missing
    names = {"teacher_log_probs", "teacher_entropy", "teacher_valid", "teacher_log_probs_at_student_topk"}
    assert set(fields) == names
    rows = [row.tolist() for row in fields["teacher_log_probs"].unbind()]
    assert rows[:2] == [[0.0, -1.0, -2.0], [-10.0]]
    assert rows[2] == store["old_log_probs"].unbind()[2].tolist()
    at_ids = fields["teacher_log_probs_at_student_topk"]
    assert at_ids.dtype == torch.float32
    torch.testing.assert_close(at_ids[0], -0.01 * store["student_topk_ids"][0] - 1.0, rtol=0, atol=2e-3)


def test_missing_teacher_values_are_masked_counted_and_neutral(store: Store, batch: Any) -> None:
    """Row 0: token 0 lost its log q, token 1 (already masked) its entropy; row 1 was never scored."""
    scores = collect_scores(batch, Teacher(), 0, True)  # type: ignore[arg-type]
    log_q, entropy = scores[0].log_q.clone(), scores[0].entropy.clone()
    log_q[0], entropy[1] = math.nan, math.inf
    scores[0] = TeacherScore(log_q, scores[0].valid, entropy, at_ids_log_q=scores[0].at_ids_log_q)
    scores[1] = TeacherScore.missing(1, at_ids=K)
    metrics: dict[str, float] = {}
    fields = teacher_fields(batch, scores, metrics)

    assert metrics["opd/teacher_missing_share"] == pytest.approx(2 / 3)  # of the 3 tokens that had mask 1
    for name in ("response_mask", "loss_mask"):
        assert [row.tolist() for row in fields[name].unbind()] == [[0, 0, 1], [0], [0, 0]]
        assert fields[name].dtype == store[name].dtype
    neutral = {
        "teacher_log_probs": "old_log_probs",
        "teacher_entropy": "entropy",
        "teacher_log_probs_at_student_topk": "student_topk_log_probs",
    }
    valid = torch.tensor([False, False, True, False, False, False])
    for name, student in neutral.items():
        values = fields[name].values()
        assert values.isfinite().all() and values.dtype == torch.float32
        assert torch.equal(values[~valid], store[student].values()[~valid])
        assert not torch.equal(values[valid], store[student].values()[valid])
        assert fields[name].offsets().tolist() == store[student].offsets().tolist()

    store.put(fields)
    inputs = reward_inputs(store.get(batch.keys, "train", ADVANTAGE_FIELDS))
    reward = total_reward(inputs, ["reverse_kl", "reverse_kl_baseline"])
    assert (reward != 0).tolist() == [[False, False, True], [False] * 3, [False] * 3]


def test_without_topk(store: Store, batch: Any) -> None:
    del store["student_topk_log_probs"], store["student_topk_ids"]
    store.put(teacher_fields(batch, collect_scores(batch, Teacher(), 0, False), {}))  # type: ignore[arg-type]
    assert "teacher_log_probs_at_student_topk" not in store
    inputs = reward_inputs(store.get(batch.keys, "train", ADVANTAGE_FIELDS))
    assert inputs.log_p_topk is None and inputs.log_q_topk is None


def test_reward_inputs(store: Store, batch: Any) -> None:
    store.put(teacher_fields(batch, collect_scores(batch, Teacher(), 0, True), {}))  # type: ignore[arg-type]
    inputs = reward_inputs(store.get(batch.keys, "train", ADVANTAGE_FIELDS))
    sources = {
        "log_p_old": "old_log_probs",
        "log_q": "teacher_log_probs",
        "mask": "response_mask",
        "student_entropy": "entropy",
        "teacher_entropy": "teacher_entropy",
        "log_p_topk": "student_topk_log_probs",
        "log_q_topk": "teacher_log_probs_at_student_topk",
    }
    for name, source in sources.items():
        padded = getattr(inputs, name)
        assert padded.shape[:2] == (3, 3)
        for row, values in enumerate(store[source].unbind()):
            assert torch.equal(padded[row, : len(values)], values), name
            assert not padded[row, len(values) :].any(), name
    assert inputs.task_score.tolist() == [1.0, -1.0, 0.0]


def test_step_metrics_are_means_over_unmasked_tokens() -> None:
    p, q = torch.tensor([0.5, 0.25]), torch.tensor([0.1, 0.3])
    inputs = RewardInputs(
        log_p_old=torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]]),
        log_q=torch.tensor([[-2.0, -4.0, 5.0], [-1.0, 5.0, 5.0]]),
        mask=torch.tensor([[1, 1, 0], [1, 0, 0]]),
        student_entropy=torch.tensor([[0.1, 0.2, 9.0], [0.6, 9.0, 9.0]]),
        teacher_entropy=torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]]),
        task_score=torch.zeros(2),
        log_p_topk=p.log().expand(2, 3, 2),
        log_q_topk=q.log().expand(2, 3, 2),
        metrics={"opd/mine": 7.0},
    )
    found = step_metrics(inputs, total_reward(inputs, ["reverse_kl"]))
    expected = {
        "opd/reward_mean": (-1 - 2 + 2) / 3,
        "opd/reward_min": -2.0,
        "opd/reverse_kl": (1 + 2 - 2) / 3,
        "opd/student_entropy": 0.3,
        "opd/teacher_entropy": 3.0,
        "opd/student_topk_mass": 0.75,
        "opd/teacher_mass_at_student_topk": 0.4,
        "opd/mine": 7.0,
    }
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)


def test_step_metrics_without_tokens_and_without_options() -> None:
    inputs = example_inputs(mask=torch.zeros(2, 3, dtype=torch.int64))
    found = step_metrics(inputs, total_reward(inputs, ["reverse_kl"]))
    assert found == dict.fromkeys(["opd/reward_mean", "opd/reward_min", "opd/reverse_kl", "opd/student_entropy"], 0.0)
