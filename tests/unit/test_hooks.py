"""From teacher scores to rewards and token weights: hooks, fields with missing teacher values, step metrics."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue
from tensordict import TensorDict
from torch import Tensor

from opd_verl.config.registry import Registry
from opd_verl.config.sections import TokenConfig
from opd_verl.hooks import (
    MASK_HOOKS,
    REWARD_HOOKS,
    WEIGHT_HOOKS,
    RewardInputs,
    register_mask,
    register_reward,
    register_weight,
    token_weights,
    total_reward,
)
from opd_verl.metrics.step import step_metrics
from opd_verl.objectives.names import Truncation
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.training.advantage_inputs import ADVANTAGE_FIELDS, reward_inputs
from opd_verl.training.teacher_scores import collect_scores, teacher_fields
from opd_verl.training.token_positions import row_lengths

LENGTHS, K = [3, 1, 2], 2  # the last row is one of verl's padding rows
MASK = [[1, 0, 1], [1], [0, 0]]


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Hooks that a test registers do not outlive it."""
    every: list[Registry[Any]] = [REWARD_HOOKS, MASK_HOOKS, WEIGHT_HOOKS]
    before = [dict(hooks) for hooks in every]
    yield
    for hooks, those in zip(every, before, strict=True):
        hooks.clear()
        hooks.update(those)


def example_inputs(**changes: Any) -> RewardInputs:
    generator = torch.Generator().manual_seed(5)
    shape = (2, 3)
    inputs = RewardInputs(
        log_p_old=-torch.rand(shape, generator=generator),
        log_q=-torch.rand(shape, generator=generator),
        mask=torch.tensor([[1, 1, 1], [1, 0, 0]]),
        student_entropy=torch.rand(shape, generator=generator),
        task_score=torch.tensor([1.0, 0.0]),
    )
    return replace(inputs, **changes)


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


@pytest.mark.parametrize(
    ("register", "hooks", "kind", "builtin"),
    [
        (register_reward, REWARD_HOOKS, "reward hook", "reverse_kl"),
        (register_mask, MASK_HOOKS, "token mask", "drop_q3"),
        (register_weight, WEIGHT_HOOKS, "token weight", "correctness"),
    ],
)
def test_a_name_is_taken_once(register: Any, hooks: Registry[Any], kind: str, builtin: str) -> None:
    hook = register("mine")(lambda inputs: inputs.log_q)
    assert register("mine")(hook) is hook  # a module imported twice
    with pytest.raises(ValueError, match=f"{kind} 'mine' is already registered"):
        register("mine")(lambda inputs: inputs.log_p_old)
    with pytest.raises(ValueError, match=f"{kind} '{builtin}'"):
        register(builtin)(lambda inputs: inputs.log_q)
    assert hooks["mine"] is hook and "mine" in hooks and "other" not in hooks
    assert sum("mine" in every for every in (REWARD_HOOKS, MASK_HOOKS, WEIGHT_HOOKS)) == 1


def test_the_built_in_names() -> None:
    assert sorted(REWARD_HOOKS) == ["reverse_kl", "reverse_kl_baseline"]
    depth, q3 = ["depth_window"], ["drop_destructive_q3", "drop_q3"]
    entropy = ["top_either_entropy", "top_student_entropy", "top_teacher_entropy"]
    assert sorted(MASK_HOOKS) == [*depth, *q3, "high_divergence", *entropy]
    assert sorted(WEIGHT_HOOKS) == ["correctness", "depth_decay"]


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


TOKENS, B = 10, 2
"""Two rollouts: 10 tokens, and 5 tokens of which the second has no valid teacher score."""


def token_inputs(**settings: Any) -> RewardInputs:
    """The first rollout is correct, the second was truncated; with these settings of `opd.tokens`."""
    generator = torch.Generator().manual_seed(11)
    mask = torch.ones(B, TOKENS, dtype=torch.int64)
    mask[1, 1], mask[1, 5:] = 0, 0
    return RewardInputs(
        log_p_old=-torch.rand(B, TOKENS, generator=generator),
        log_q=-torch.rand(B, TOKENS, generator=generator),
        mask=mask,
        student_entropy=torch.rand(B, TOKENS, generator=generator),
        teacher_entropy=torch.rand(B, TOKENS, generator=generator),
        task_score=torch.tensor([1.0, 0.0]),
        correct=torch.tensor([True, False]),
        truncated=torch.tensor([False, True]),
        tokens=TokenConfig(**settings),
    )


def naive_keep(name: str, inputs: RewardInputs, row: int, position: int) -> bool:
    """Whether the mask keeps this unmasked token at share 0.4, quantile 0.5, low entropy 0.6, window 1 .. 3."""
    present = [other for other in range(TOKENS) if inputs.mask[row, other]]

    def reward(other: int) -> float:
        return (inputs.log_q[row, other] - inputs.log_p_old[row, other]).item()

    def is_top(entropy: Tensor | None) -> bool:
        assert entropy is not None
        ahead = sum(bool(entropy[row, other] > entropy[row, position]) for other in present)
        return ahead < {10: 4, 4: 1}[len(present)]

    is_q3 = reward(position) < 0 and inputs.student_entropy[row, position].item() < 0.6
    smaller = sum(abs(reward(other)) < abs(reward(position)) for other in present)
    return {
        "top_student_entropy": lambda: is_top(inputs.student_entropy),
        "top_teacher_entropy": lambda: is_top(inputs.teacher_entropy),
        "top_either_entropy": lambda: is_top(inputs.student_entropy) or is_top(inputs.teacher_entropy),
        "drop_q3": lambda: not is_q3,
        "drop_destructive_q3": lambda: not (is_q3 and row == 0),
        "high_divergence": lambda: smaller >= {10: 5, 4: 2}[len(present)],
        "depth_window": lambda: 1 <= position <= 3,
    }[name]()


SETTINGS = {"share": 0.4, "divergence_quantile": 0.5, "low_entropy": 0.6, "first_position": 1, "last_position": 3}


@pytest.mark.parametrize("name", sorted(MASK_HOOKS))
def test_built_in_masks_and_their_kept_share(name: str) -> None:
    inputs = token_inputs(masks=[name], **SETTINGS)
    present = [(row, position) for row in range(B) for position in range(TOKENS) if inputs.mask[row, position]]
    expected = torch.zeros(B, TOKENS)
    for row, position in present:
        expected[row, position] = naive_keep(name, inputs, row, position)
    weights, metrics = token_weights(inputs)
    assert weights is not None and weights.dtype == torch.float32
    assert torch.equal(weights, expected) and 0 < expected.sum() < len(present)
    share = pytest.approx(expected.sum().item() / len(present))
    assert metrics == {"opd/kept_share": share, f"opd/kept_share/{name}": share}


def test_built_in_weights() -> None:
    weights, _ = token_weights(token_inputs(weights=["correctness"], correct=0.25, incorrect=2.5))
    assert weights is not None and weights.tolist() == [[0.25] * 10, [2.5, 0, 2.5, 2.5, 2.5, 0, 0, 0, 0, 0]]
    inputs = token_inputs(weights=["depth_decay"], half_life=2.0)
    weights, metrics = token_weights(inputs)
    assert weights is not None and weights[0, ::2].tolist() == [1, 0.5, 0.25, 0.125, 0.0625]
    assert weights[1].tolist() == pytest.approx([1, 0, 0.5, 0.5**1.5, 0.25, 0, 0, 0, 0, 0])
    assert metrics == {"opd/kept_share": 1.0}


def test_token_weights_are_the_product() -> None:
    @register_mask("even")
    def even(inputs: RewardInputs) -> Tensor:
        return 1 - inputs.position % 2

    @register_weight("mine")
    def mine(inputs: RewardInputs) -> Tensor:
        return torch.where(inputs.position == 0, 0, inputs.position * 10.0)

    settings = {"masks": ["even", "depth_window"], "weights": ["mine", "correctness"], "last_position": 5}
    inputs = token_inputs(**settings, incorrect=0.5)
    weights, metrics = token_weights(inputs)
    assert weights is not None
    assert weights.tolist() == [[0, 0, 20, 0, 40, 0, 0, 0, 0, 0], [0, 0, 10, 0, 20, 0, 0, 0, 0, 0]]
    # 14 tokens; "even" keeps 5 + 3 of them, the window 6 + 4, both and "mine" 2 + 2
    shares = {"": 4 / 14, "/even": 8 / 14, "/depth_window": 10 / 14}
    assert metrics == pytest.approx({f"opd/kept_share{name}": share for name, share in shares.items()})


@pytest.mark.parametrize(("policy", "kept"), [("mask", 0), ("drop", 0), ("mask_tail", 2)])
def test_truncation_policies(policy: str, kept: int) -> None:
    inputs = token_inputs(truncated=Truncation(policy), tail_tokens=2)
    weights, metrics = token_weights(inputs)
    assert weights is not None and weights[0].tolist() == [1] * 10
    assert weights[1].tolist() == ([1, 0, 1] if kept else [0] * 3) + [0] * 7
    assert metrics == {"opd/kept_share": pytest.approx((10 + kept) / 14)}


def test_nothing_configured_is_no_weight() -> None:
    inputs = replace(token_inputs(), truncated=None)
    assert token_weights(inputs) == (None, {}) and token_weights(example_inputs()) == (None, {})


def test_no_tokens_at_all() -> None:
    inputs = token_inputs(masks=sorted(MASK_HOOKS), weights=sorted(WEIGHT_HOOKS))
    inputs.mask.zero_()
    weights, metrics = token_weights(inputs)
    assert weights is not None and not weights.any()
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize(("kind", "register"), [("masks", register_mask), ("weights", register_weight)])
def test_a_wrong_shape_of_a_mask_or_weight_names_it(kind: str, register: Any) -> None:
    register("per_row")(lambda inputs: inputs.task_score)
    with pytest.raises(ValueError, match=rf"token {kind[:-1]} 'per_row' returned \(2,\), expected \(2, 10\)"):
        token_weights(token_inputs(**{kind: ["per_row"]}))


@pytest.mark.parametrize(
    ("kind", "register", "value", "problem"),
    [
        ("masks", register_mask, 0.5, "register it as a weight"),
        ("masks", register_mask, math.nan, "other than 0 and 1"),
        ("weights", register_weight, -1e-6, "negative or not finite"),
        ("weights", register_weight, math.nan, "negative or not finite"),
        ("weights", register_weight, math.inf, "negative or not finite"),
    ],
)
def test_wrong_values_name_the_hook_where_they_count(kind: str, register: Any, value: float, problem: str) -> None:
    masked, seen = torch.ones(B, TOKENS), torch.ones(B, TOKENS)
    masked[1, 1], seen[1, 2] = value, value
    register("masked")(lambda inputs: masked)
    register("seen")(lambda inputs: seen)
    inputs = token_inputs(**{kind: ["masked"]})
    weights, _ = token_weights(inputs)
    assert weights is not None and torch.equal(weights, inputs.mask.float())
    with pytest.raises(ValueError, match=f"'seen' .*{problem}"):
        token_weights(token_inputs(**{kind: ["masked", "seen"]}))


@pytest.mark.parametrize(
    ("kind", "name", "missing", "remedy"),
    [
        ("weights", "correctness", "correct", "a task reward whose score tells correct from incorrect"),
        ("masks", "drop_destructive_q3", "correct", "a task reward whose score tells correct from incorrect"),
        ("masks", "top_teacher_entropy", "teacher_entropy", "the teacher's entropy"),
        ("masks", "top_either_entropy", "teacher_entropy", "the teacher's entropy"),
    ],
)
def test_what_a_hook_needs_and_the_run_lacks(kind: str, name: str, missing: str, remedy: str) -> None:
    inputs = replace(token_inputs(**{kind: [name]}), **{missing: None})
    with pytest.raises(ValueError, match=f"needs {remedy}"):
        token_weights(inputs)


def test_a_truncation_policy_needs_to_know_who_was_truncated() -> None:
    inputs = token_inputs(truncated=Truncation.mask)
    with pytest.raises(ValueError, match=r"opd\.tokens\.truncated=mask needs"):
        token_weights(replace(inputs, truncated=None))


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


def hook_inputs(store: "Store", batch: Any, **settings: Any) -> RewardInputs:
    """Responses may have 3 tokens and end on id 20."""
    return reward_inputs(store.get(batch.keys, "train", list(ADVANTAGE_FIELDS)), TokenConfig(**settings), 3, {20})


@pytest.fixture
def batch() -> SimpleNamespace:
    return SimpleNamespace(keys=["a_0", "b_0", "pad_0"], partition_id="train", tags=[{}, {}, {"is_padding": True}])


class Teacher:
    """Scores row i as log q = -(10 i + t), H = i + 1, and remembers what it was asked."""

    def collect(
        self, requests: list[ScoreRequest], at_ids: list[np.ndarray] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        assert spec == CollectSpec(spec.step, topk=0, entropy=True, hidden=False)
        self.requests, self.at_ids, self.step = requests, at_ids, spec.step
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
    scores = collect_scores(batch, teacher, 4, at_student_topk=with_topk)
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
    missing = scores[2].at_ids_log_q
    assert missing is not None and missing.shape == (2, K)


def test_fields_of_a_complete_teacher(store: Store, batch: Any) -> None:
    fields, metrics = teacher_fields(batch, collect_scores(batch, Teacher(), 0, at_student_topk=True))  # type: ignore[arg-type]
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
    scores = collect_scores(batch, Teacher(), 0, at_student_topk=True)  # type: ignore[arg-type]
    assert scores[0].entropy is not None
    log_q, entropy = scores[0].log_q.clone(), scores[0].entropy.clone()
    log_q[0], entropy[1] = math.nan, math.inf
    scores[0] = TeacherScore(log_q, scores[0].valid, entropy, at_ids_log_q=scores[0].at_ids_log_q)
    scores[1] = TeacherScore.missing(1, at_ids=K)
    fields, metrics = teacher_fields(batch, scores)

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
        assert row_lengths(fields[name]).tolist() == LENGTHS

    store.put(fields)
    inputs = hook_inputs(store, batch)
    reward = total_reward(inputs, ["reverse_kl", "reverse_kl_baseline"])
    assert (reward != 0).tolist() == [[False, False, True], [False] * 3, [False] * 3]


def test_without_topk(store: Store, batch: Any) -> None:
    del store["student_topk_log_probs"], store["student_topk_ids"]
    store.put(teacher_fields(batch, collect_scores(batch, Teacher(), 0))[0])  # type: ignore[arg-type]
    assert "teacher_log_probs_at_student_topk" not in store
    inputs = hook_inputs(store, batch)
    assert inputs.log_p_topk is None and inputs.log_q_topk is None


def test_reward_inputs(store: Store, batch: Any) -> None:
    store.put(teacher_fields(batch, collect_scores(batch, Teacher(), 0, at_student_topk=True))[0])  # type: ignore[arg-type]
    inputs = hook_inputs(store, batch)
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
    assert inputs.correct is not None and inputs.correct.tolist() == [True, False, False]
    assert inputs.truncated is not None and inputs.truncated.tolist() == [True, False, False]


def test_dropped_rollouts_leave_the_mask(store: Store, batch: Any) -> None:
    """Row 0 has all 3 tokens that a response may have, and does not end on an end-of-sequence id."""
    store.put(teacher_fields(batch, collect_scores(batch, Teacher(), 0))[0])  # type: ignore[arg-type]
    for policy in Truncation:
        mask = hook_inputs(store, batch, truncated=policy).mask
        assert mask.tolist() == [[0, 0, 0] if policy is Truncation.drop else [1, 0, 1], [1, 0, 0], [0, 0, 0]]


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
    metrics = step_metrics(inputs, total_reward(inputs, ["reverse_kl"]))
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
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_step_metrics_without_tokens_and_without_options() -> None:
    inputs = example_inputs(mask=torch.zeros(2, 3, dtype=torch.int64))
    metrics = step_metrics(inputs, total_reward(inputs, ["reverse_kl"]))
    assert metrics == dict.fromkeys(["opd/reward_mean", "opd/reward_min", "opd/reverse_kl", "opd/student_entropy"], 0.0)
