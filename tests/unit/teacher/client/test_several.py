"""Several teachers: the mixture against its definition, real pools against float64 references, and what is refused."""

import math
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import transfer_queue
from head_harness import make_update, student
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from placement_harness import brute_force
from preflight_harness import SILENT, TEACHER, Files, assert_names_it, save_config
from ray.util import placement_group
from scorer_harness import reference, request
from tensordict import NonTensorStack, TensorDict
from tiny_models import save_tiny_qwen3, tiny_qwen3, tiny_tokenizer
from torch import Tensor
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from opd_verl.checks.preflight import preflight
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, parse_opd, routed_by
from opd_verl.config.sections import (
    Combine,
    ContextConfig,
    NamedTeacherConfig,
    ObjectiveConfig,
    TeacherConfig,
    TokenConfig,
)
from opd_verl.metrics.step import step_metrics
from opd_verl.objective_hooks import ObjectiveInputs
from opd_verl.objectives.names import Support
from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.client.several import AveragedTeachers, RoutedTeachers, mixture, routes
from opd_verl.teacher.client.start import connect_teachers, pool_name, start_teachers
from opd_verl.teacher.placement import check_placement, placeable
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.training.advantage_inputs import reward_inputs
from opd_verl.training.rollout.agent_loop import OpdAgentLoopWorker
from opd_verl.training.teacher_scores import collect_scores, teacher_fields
from opd_verl.training.trainer import OpdTrainer

VOCAB, LIMIT, K = 96, 90, 3
SEEDS = {"math": 0, "code": 5}
SOURCE = {"gsm8k": "math", "aime": "math", "apps": "code"}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
ON_THE_WIRE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
"""Log-probs at the ids asked for travel as float16."""


# The mixture


def score(log_q: Any, at_ids: Any = None, **more: Any) -> TeacherScore:
    log_q = torch.as_tensor(log_q, dtype=torch.float32)
    at_ids = None if at_ids is None else torch.as_tensor(at_ids, dtype=torch.float16)
    return TeacherScore(log_q, torch.ones(len(log_q), dtype=torch.bool), at_ids_log_q=at_ids, **more)


@st.composite
def teachers(draw: st.DrawFn) -> tuple[list[TeacherScore], list[float]]:
    """One to four teachers' log-probs of the same tokens, from certain to e^-40, and their weights."""
    count, length = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    log_prob = st.floats(-40.0, 0.0, width=16)
    row = st.lists(log_prob, min_size=K, max_size=K)
    scores = [
        score(
            draw(st.lists(log_prob, min_size=length, max_size=length)),
            np.reshape(draw(st.lists(row, min_size=length, max_size=length)), (length, K)),
        )
        for _ in range(count)
    ]
    return scores, draw(st.lists(st.floats(0.01, 100.0), min_size=count, max_size=count))


def values(item: TeacherScore) -> Tensor:
    """Every log-prob [R, 1 + K], float64."""
    assert item.at_ids_log_q is not None
    return torch.cat([item.log_q[:, None].double(), item.at_ids_log_q.double()], dim=-1)


@given(teachers())
def test_a_mixture_is_the_weighted_mean_of_the_probabilities(drawn: tuple[list[TeacherScore], list[float]]) -> None:
    scores, weights = drawn
    mixed = mixture(scores, weights)
    expected = sum(w * values(item).exp() for item, w in zip(scores, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(values(mixed).exp(), torch.as_tensor(expected), rtol=1e-5, atol=0.0)
    assert (values(mixed) <= 0.0).all() and mixed.valid.all() and mixed.log_q.dtype == torch.float32
    assert mixed.entropy is None and mixed.topk_ids is None and mixed.hidden is None


@given(teachers(), st.randoms())
def test_the_order_of_the_teachers_does_not_matter(drawn: tuple[list[TeacherScore], list[float]], random: Any) -> None:
    scores, weights = drawn
    order = random.sample(range(len(scores)), len(scores))
    mixed = mixture([scores[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(values(mixed), values(mixture(scores, weights)), rtol=1e-6, atol=1e-7)


@given(teachers(), st.integers(1, 4))
def test_equal_teachers_are_that_teacher_to_the_bit(drawn: tuple[list[TeacherScore], list[float]], count: int) -> None:
    scores, weights = drawn
    mixed = mixture(scores[:1] * count, (weights * count)[:count])
    assert torch.equal(values(mixed), values(scores[0]))


def test_a_mixture_by_hand() -> None:
    """q = (3 * 0.5 + 1 * 0.1) / 4 = 0.4."""
    mixed = mixture([score([math.log(0.5)]), score([math.log(0.1)])], [3.0, 1.0])
    assert mixed.log_q.exp().item() == pytest.approx(0.4) and mixed.at_ids_log_q is None


def test_a_token_is_valid_where_every_teacher_is() -> None:
    nan = math.nan
    parts = [
        score([-1.0, nan, -1.0, -1.0], [[-1.0, -1.0]] * 4),
        score([-2.0, -2.0, -2.0, -2.0], [[-1.0, -1.0], [-1.0, -1.0], [-1.0, nan], [-1.0, -1.0]]),
        replace(score([-3.0] * 4, [[-1.0, -1.0]] * 4), valid=torch.tensor([True, True, True, False])),
    ]
    mixed = mixture(parts, [1.0, 1.0, 1.0])
    assert mixed.valid.tolist() == [True, False, False, False]
    assert mixed.log_q[1].isnan(), "what is missing stays missing"
    lost = mixture([parts[0], TeacherScore.missing(4, at_ids=2)], [1.0, 1.0])
    assert not lost.valid.any() and lost.log_q.isnan().all()


# Real pools


@pytest.fixture(scope="module")
def opd(tmp_path_factory: pytest.TempPathFactory) -> OpdConfig:
    """Two teachers, the first with two replicas, routed by the data's source."""
    root = tmp_path_factory.mktemp("teachers")
    named = {
        name: NamedTeacherConfig(
            path=save_tiny_qwen3(root / name, VOCAB, LIMIT, seed),
            dtype="float32",
            n_gpus_per_node=2 if name == "math" else 1,
            max_tokens_per_batch=200,
            timeout_s=60.0,
            values=[value for value, teacher in SOURCE.items() if teacher == name],
        )
        for name, seed in SEEDS.items()
    }
    return OpdConfig(teachers=named, objective=ObjectiveConfig(k=K))


def averaged_config(opd: OpdConfig) -> OpdConfig:
    named = {
        name: replace(teacher, weight=weight, values=[])
        for (name, teacher), weight in zip(opd.teachers.items(), (3.0, 1.0), strict=True)
    }
    return replace(opd, combine=Combine.average, teachers=named)


class ResourcePool:
    """verl's, as far as we use it."""

    def __init__(self, devices: int) -> None:
        self.group = placement_group([{"CPU": 1, "GPU": 1}] * devices)
        ray.get(self.group.ready())

    def get_placement_groups(self, device_name: str) -> list[Any]:
        return [self.group]


@pytest.fixture(scope="module")
def routed(cluster: None, opd: OpdConfig) -> RoutedTeachers:
    pools = {pool_name(name): ResourcePool(teacher.n_gpus_per_node) for name, teacher in opd.teachers.items()}
    teachers_started = start_teachers(OmegaConf.create(), opd, pools, LIMIT)
    assert isinstance(teachers_started, RoutedTeachers)
    return teachers_started


def routed_request(index: int, value: str) -> ScoreRequest:
    return replace(request(f"{index}_0_0", 3 + index, 4 * index, seed=index), route=value)


REQUESTS = [routed_request(index, value) for index, value in enumerate([*SOURCE, *SOURCE, "apps"])]
AT_IDS = [np.random.default_rng(i).integers(0, LIMIT, (len(r.response_ids), K)) for i, r in enumerate(REQUESTS)]


def assert_is(actual: TeacherScore, asked: ScoreRequest, ids: np.ndarray, q: Tensor, entropy: bool) -> None:
    """The score against probabilities q [R, LIMIT] in float64."""
    at = torch.cat([torch.tensor(asked.response_ids)[:, None], torch.tensor(ids)], dim=-1).long()
    expected = q.gather(-1, at).log()
    assert actual.valid.all() and actual.at_ids_log_q is not None
    torch.testing.assert_close(actual.log_q.double(), expected[:, 0], **CLOSE)
    torch.testing.assert_close(actual.at_ids_log_q.double(), expected[:, 1:], **ON_THE_WIRE)
    assert (actual.entropy is not None) == entropy
    if actual.entropy is not None:
        torch.testing.assert_close(actual.entropy.double(), -(q * q.log()).sum(-1), **CLOSE)


def test_each_rollout_is_scored_by_its_own_teacher(routed: RoutedTeachers, opd: OpdConfig) -> None:
    before = {name: pool.stats().get("tokens_scored", 0.0) for name, pool in routed.pools.items()}
    for asked in REQUESTS:
        connect_teachers(opd).submit(asked, step=1)
    scores = routed.collect(REQUESTS, AT_IDS, CollectSpec(1, topk=0))
    models = {name: tiny_qwen3(VOCAB, seed) for name, seed in SEEDS.items()}
    for asked, actual, ids in zip(REQUESTS, scores, AT_IDS, strict=True):
        assert_is(actual, asked, ids, reference(models[SOURCE[asked.route]], asked, LIMIT).exp(), entropy=True)
    for name, pool in routed.pools.items():
        own = sum(len(asked.response_ids) for asked in REQUESTS if SOURCE[asked.route] == name)
        assert pool.stats()["tokens_scored"] - before[name] == own, "nobody scored another's rollouts"
    assert routed.stats()["rollouts_asked"] == sum(pool.stats()["rollouts_asked"] for pool in routed.pools.values())
    assert routed.collect([], None, CollectSpec(1)) == []


def test_a_step_of_one_teachers_rollouts_alone(routed: RoutedTeachers) -> None:
    only = [asked for asked in REQUESTS if asked.route == "apps"]
    scores = routed.collect(only, None, CollectSpec(2))
    assert [item.length for item in scores] == [len(asked.response_ids) for asked in only]
    assert all(item.valid.all() for item in scores)


def test_averaged_teachers_are_the_mean_of_their_probabilities(routed: RoutedTeachers, opd: OpdConfig) -> None:
    averaged = connect_teachers(averaged_config(opd))
    assert isinstance(averaged, AveragedTeachers)
    for asked in REQUESTS:
        averaged.submit(asked, step=3)
    scores = averaged.collect(REQUESTS, AT_IDS, CollectSpec(3))
    math_model, code_model = (tiny_qwen3(VOCAB, seed) for seed in SEEDS.values())
    for asked, actual, ids in zip(REQUESTS, scores, AT_IDS, strict=True):
        q = 0.75 * reference(math_model, asked, LIMIT).exp() + 0.25 * reference(code_model, asked, LIMIT).exp()
        assert_is(actual, asked, ids, q, entropy=False)
        for other in (math_model, code_model):
            alone = reference(other, asked, LIMIT).gather(-1, torch.tensor(asked.response_ids).long()[:, None])
            assert not len(alone) or not torch.allclose(actual.log_q.double(), alone[:, 0], **CLOSE)
    assert averaged.stats()["rollouts_asked"] == sum(pool.stats()["rollouts_asked"] for pool in averaged.pools.values())


@pytest.mark.parametrize("value", ["", "Gsm8k", "None"])
def test_a_rollout_without_a_teacher_is_an_error(routed: RoutedTeachers, value: str) -> None:
    lost = routed_request(2, value)
    message = rf"data_source={value!r} is in the `values` of none of opd.teachers \(gsm8k: math, aime: math, apps: code"
    with pytest.raises(ValueError, match=message):
        routed.submit(lost, step=4)
    with pytest.raises(ValueError, match=message):
        routed.collect([*REQUESTS, lost], None, CollectSpec(4))


def test_what_a_teacher_cannot_answer_is_an_error_of_all(routed: RoutedTeachers) -> None:
    too_long = replace(request("too_long", 100, 100), route="apps")
    with pytest.raises(ValueError, match="max_position_embeddings=128"):
        routed.collect([REQUESTS[1], too_long], None, CollectSpec(5))


def test_actors_are_named_after_their_teachers(routed: RoutedTeachers, opd: OpdConfig) -> None:
    names = {name: pool.names for name, pool in routed.pools.items() if isinstance(pool, TeacherPool)}
    assert names == {"math": ["opd_teacher_math_0", "opd_teacher_math_1"], "code": ["opd_teacher_code_0"]}
    for name in (*names["math"], *names["code"]):
        assert ray.get(ray.get_actor(name).ping.remote()) != os.getpid()
    with pytest.raises(ValueError, match="opd_teacher_0"):
        connect_teachers(OpdConfig(teacher=TeacherConfig(path="alone")))


def test_a_lost_teacher_costs_its_own_tokens_or_the_whole_mixture(routed: RoutedTeachers, opd: OpdConfig) -> None:
    """The last test of these actors: the code teacher dies for good."""
    averaged = connect_teachers(averaged_config(opd))
    ray.kill(ray.get_actor("opd_teacher_code_0"))
    for asked, actual in zip(REQUESTS, routed.collect(REQUESTS, AT_IDS, CollectSpec(6)), strict=True):
        assert actual.valid.all() if SOURCE[asked.route] == "math" else not actual.valid.any()
        assert actual.entropy is not None and actual.at_ids_log_q is not None
    for actual in averaged.collect(REQUESTS, AT_IDS, CollectSpec(7)):
        assert not actual.valid.any() and actual.log_q.isnan().all()


# From the data to the request


class RecordingTeacher:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def submit(self, asked: ScoreRequest, step: int) -> None:
        self.seen.append((asked.key, asked.route))

    def collect(self, requests: list[ScoreRequest], at_ids: Any, spec: CollectSpec) -> list[TeacherScore]:
        self.seen += [(asked.key, asked.route) for asked in requests]
        return [score([-1.0] * len(asked.response_ids)) for asked in requests]


@pytest.mark.parametrize(
    ("field", "value", "route"),
    [(None, "gsm8k", ""), ("data_source", "gsm8k", "gsm8k"), ("level", 3, "3"), ("level", np.int64(3), "3")],
)
def test_the_agent_loop_passes_the_route(field: str | None, value: Any, route: str) -> None:
    worker: Any = object.__new__(OpdAgentLoopWorker)
    worker.teacher, worker.context, worker.route_field = RecordingTeacher(), ContextConfig(), field
    sample = {"uid": "u", "session_id": 1, "global_steps": 3, field or "data_source": value}
    worker.submit([SimpleNamespace(prompt_ids=[1], response_ids=[2, 3])], sample)
    assert worker.teacher.seen == [("u_1_0", route)]


def nested(rows: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def column(*rows: Any) -> Any:
    """A field that holds no tensors, as verl writes it."""
    return NonTensorStack.from_list(list(rows))


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two rows and one of verl's padding rows, in a TransferQueue in memory."""
    fields: dict[str, Any] = {
        "prompts": nested([[5, 6], [7], [1]], torch.int64),
        "responses": nested([[1, 2], [3], [1]], torch.int64),
        "response_mask": nested([[1, 1], [1], [0]], torch.int64),
        "loss_mask": nested([[1, 1], [1], [0]], torch.int64),
        "old_log_probs": nested([[-1.0, -2.0], [-3.0], [-4.0]]),
        "entropy": nested([[1.0, 2.0], [3.0], [4.0]]),
        "data_source": column("gsm8k", "apps", "gsm8k"),
        "level": column(1, 2, 1),
    }

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return TensorDict({name: fields[name] for name in select_fields if name in fields}, batch_size=3)

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    return SimpleNamespace(keys=["a_0_0", "b_0_0", "c_0_0"], partition_id="train", tags=[{}, {}, {"is_padding": True}])


@pytest.mark.parametrize(
    ("field", "expected"), [(None, ["", ""]), ("data_source", ["gsm8k", "apps"]), ("level", ["1", "2"])]
)
def test_the_trainer_reads_the_route_of_every_row(batch: Any, field: str | None, expected: list[str]) -> None:
    teacher: Any = RecordingTeacher()
    collect_scores(batch, teacher, 4, route_field=field)
    assert teacher.seen == list(zip(["a_0_0", "b_0_0"], expected, strict=True))


def test_a_field_that_the_data_do_not_have_is_named(batch: Any) -> None:
    teacher: Any = RecordingTeacher()
    with pytest.raises(
        ValueError, match=r"opd\.route_field=subject: no such field \(the data have: prompts, responses"
    ):
        collect_scores(batch, teacher, 4, route_field="subject")


def test_the_route_is_no_part_of_the_question() -> None:
    assert REQUESTS[3].checksum == replace(REQUESTS[3], route="other").checksum


@pytest.mark.parametrize("value", ["apps", "minif2f"])
def test_a_prompt_without_a_teacher_ends_the_run_before_it_is_generated(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    trainer: Any = object.__new__(OpdTrainer)
    trainer.teacher, trainer.opd = RoutedTeachers({}, SOURCE, "data_source"), OpdConfig()
    trainer.global_steps, trainer.prompts_named = 1, {}
    rows: Any = {"uid": np.array(["a", "b"], dtype=object), "data_source": np.array(["gsm8k", value], dtype=object)}
    monkeypatch.setattr(PPOTrainerSync, "_next_train_batch", lambda self, num_prompts: tu.get_tensordict(rows))
    if value in SOURCE:
        assert list(trainer._next_train_batch()["uid"]) == ["000001.00000", "000001.00001"]
    else:
        with pytest.raises(ValueError, match="data_source='minif2f'"):
            trainer._next_train_batch()


def test_routes_of_one_value_alone() -> None:
    assert routes(TensorDict({"level": column(7, 7)}, batch_size=2), "level") == ["7", "7"]


# Without an entropy


def test_fields_and_metrics_of_teachers_without_an_entropy(batch: Any) -> None:
    teacher: Any = RecordingTeacher()
    fields, _ = teacher_fields(batch, collect_scores(batch, teacher, 1))
    assert set(fields) == {"teacher_log_probs", "teacher_valid"}
    assert [row.tolist() for row in fields["teacher_valid"].unbind()] == [[1, 1], [1], [0]]
    names = ["responses", "response_mask", "old_log_probs", "entropy"]
    data = transfer_queue.kv_batch_get(batch.keys, "train", names)
    data["teacher_log_probs"], data["rm_scores"] = fields["teacher_log_probs"], nested([[0.0, 1.0], [0.0], [0.0]])
    inputs = reward_inputs(data, TokenConfig(), limit=8, end_ids={1})
    assert inputs.teacher_entropy is None
    metrics = step_metrics(inputs, inputs.log_q - inputs.log_p_old)
    assert "opd/teacher_entropy" not in metrics and metrics["opd/reverse_kl"] == pytest.approx(-1.0)


@pytest.mark.parametrize("fused", [True, False])
def test_the_actor_trains_on_the_students_ids_without_an_entropy(micro_batch: Any, fused: bool) -> None:
    opd = OpdConfig(objective=ObjectiveConfig(support=Support.student_topk, k=K))
    hidden, head = student()
    collected = []
    for fields in (micro_batch, micro_batch.exclude("teacher_entropy")):
        update = make_update(fields, opd, "opd_none", None)
        log_p = (hidden @ head.weight[: head.limit].T).log_softmax(-1)
        collected.append((update.fused(hidden, head) if fused else update.plain(log_p))["divergence"])
    assert torch.equal(*collected) and collected[0].any()


def test_an_objective_of_the_users_sees_that_there_is_none(micro_batch: Any) -> None:
    seen: list[ObjectiveInputs] = []
    opd = OpdConfig(objective=ObjectiveConfig(support=Support.student_topk, k=K))
    update = make_update(micro_batch.exclude("teacher_entropy"), opd, "opd_none", None)
    terms = replace(update.loss.terms, objective=lambda inputs: seen.append(inputs) or inputs.log_p)
    terms.losses(torch.zeros(len(update.weights), 1 + K), update.fields)
    assert seen[0].teacher_entropy is None


# Devices


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=4),
)
def test_placement_of_several_pools_is_exact(nodes: list[int], pools: list[tuple[int, int]]) -> None:
    assert placeable(nodes, *pools) == brute_force(nodes, *pools)


def test_every_teacher_needs_its_devices() -> None:
    trainer = SimpleNamespace(n_gpus_per_node=4, nnodes=1)
    pair = {"math": NamedTeacherConfig(n_gpus_per_node=2), "code": NamedTeacherConfig(n_gpus_per_node=3)}
    check_placement([8, 1], trainer, {"math": pair["math"], "code": NamedTeacherConfig()})
    message = (
        r"opd\.teachers\.code\.n_gpus_per_node=3: 1 x 2 devices for opd\.teachers\.math, 1 x 3 .* nodes with \[8\]"
    )
    with pytest.raises(ConfigError, match=message):
        check_placement([8], trainer, pair)


# What the config may say


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A student, two teachers that fit it and one that does not, and data of two sources."""
    made = Files(tmp_path_factory.mktemp("models"))
    for name, seed in {"student": 0, "math": 1, "code": 2}.items():
        save_tiny_qwen3(made.root / name, VOCAB, seed=seed)
    save_config(made.root / "other_tokenizer", tokenizer=tiny_tokenizer(VOCAB - 1))
    (made.root / "prompts").touch()
    rows = 4
    table = {
        "prompt": [[{"role": "user", "content": "?"}]] * rows,
        "reward_model": [{"style": "rule", "ground_truth": ""}] * rows,
        "data_source": ["gsm8k", "apps", "gsm8k", "apps"],
        "level": [1, 2, 2, 1],
    }
    pq.write_table(pa.table(table), made.root / "two.parquet")
    pq.write_table(pa.table(table | {"data_source": ["gsm8k", None, "apps", "apps"]}), made.root / "null.parquet")
    return made


DATA = "data.train_files=[@two.parquet,@prompts]"
ROUTES = ("values: [gsm8k, aime]", "values: [apps]")
TOPK = ("opd.objective.support=student_topk", "opd.objective.k=16", SILENT)


def named(first: str = ROUTES[0], second: str = ROUTES[1], *changes: str, code: str = "@code") -> list[str]:
    """Overrides that name two teachers with these other keys, and no single one."""
    both = f"+opd.teachers={{math: {{path: @math, {first}}}, code: {{path: {code}, {second}}}}}"
    return [f"{TEACHER}=null", both, *changes]


def averaged(*changes: str) -> list[str]:
    return named("weight: 3", "weight: 1", "opd.combine=average", *changes)


ENTROPY, COMMON = "a mixture's entropy does not follow", "no common top-k or LM head"
# (changes, key, value, part of the problem, part of the remedy); `@name` as in Files.overrides
REFUSED: dict[str, tuple[list[str], str, Any, str, str]] = {
    "no path": (
        [f"{TEACHER}=@math", "+opd.teachers={math: {values: [gsm8k]}}"],
        "opd.teachers.math.path",
        None,
        "this teacher has no model",
        "+opd.teachers.math.path=/path/to/teacher",
    ),
    "nothing but a name": (["+opd.teachers={math: null}"], "opd.teachers.math.path", None, "no model", "/path/to"),
    "a path in the place of the keys": (
        ["+opd.teachers={math: somewhere}"],
        "opd.teachers.math",
        "somewhere",
        "somewhere",
        "recipe/opd.yaml",
    ),
    "unknown key": (
        named("pathh: 1", ROUTES[1]),
        "opd.teachers.math.pathh",
        1,
        "'pathh' not in 'NamedTeacherConfig'",
        "recipe/opd.yaml",
    ),
    "keys of named teachers on the one": (
        ["+opd.teacher.weight=2"],
        "opd.teacher.weight",
        2,
        "not in 'TeacherConfig'",
        "recipe/opd.yaml",
    ),
    "unknown way": (named(*ROUTES, "opd.combine=vote"), "opd.combine", "vote", "[route, average]", "recipe/opd.yaml"),
    "no folder": (
        named(*ROUTES, code="@nope"),
        "opd.teachers.code.path",
        "@nope",
        "no such model folder",
        "opd.teachers.code.path=/path",
    ),
    "other tokenizer": (
        named(*ROUTES, code="@other_tokenizer"),
        "opd.teachers.code.path",
        "@other_tokenizer",
        "(95 and 96 tokens, 1 not shared)",
        "the student's model family",
    ),
    "dtype": (
        named(f"{ROUTES[0]}, dtype: float16", ROUTES[1]),
        "opd.teachers.math.dtype",
        "float16",
        "the teacher loads in",
        "opd.teachers.math.dtype=bfloat16",
    ),
    "size": (
        named(ROUTES[0], f"{ROUTES[1]}, chunk_rows: 0"),
        "opd.teachers.code.chunk_rows",
        0,
        "must be positive",
        "drop the override",
    ),
    "temperature": (
        named(ROUTES[0], f"{ROUTES[1]}, temperature: 0.5"),
        "opd.teachers.code.temperature",
        0.5,
        "the rollout temperature is 1.0",
        "leave it unset",
    ),
    "a step's limit on one teacher": (
        named(f"{ROUTES[0]}, max_missing_share: 0.5", ROUTES[1]),
        "opd.teachers.math.max_missing_share",
        0.5,
        "a limit on the whole step",
        "opd.teacher.max_missing_share=0.1",
    ),
    "a named teacher that follows the student": (
        named(f"{ROUTES[0]}, sync_every: 2", ROUTES[1]),
        "opd.teachers.math.sync_every",
        2,
        "only a single teacher takes the student's weights",
        "opd.teacher.sync_every=0",
    ),
    "teachers that follow the student": (
        named(*ROUTES, "opd.teacher.sync_every=2"),
        "opd.teacher.sync_every",
        2,
        "only a single teacher takes the student's weights",
        "opd.teacher.sync_every=0",
    ),
    "no values": (
        named("weight: 1.0", ROUTES[1]),
        "opd.teachers.math.values",
        [],
        "would score nothing",
        "++opd.teachers.math.values=[a value of data_source]",
    ),
    "one value twice": (
        named(ROUTES[0], "values: [apps, aime]"),
        "opd.teachers.code.values",
        ["apps", "aime"],
        "'aime' is a value of teacher math too",
        "give the value to one teacher",
    ),
    "a value in the data that is nobody's": (
        named(ROUTES[0], "values: [codecontests]", DATA),
        "opd.teachers",
        ["math", "code"],
        "two.parquet has data_source='apps', which is in the values of no teacher (gsm8k: math, aime: math, codecon",
        "add it to the `values`",
    ),
    "a row without a value": (
        named(*ROUTES, "data.train_files=@null.parquet"),
        "opd.teachers",
        ["math", "code"],
        "data_source='None'",
        "add it to the `values`",
    ),
    "a number that is nobody's": (
        named("values: [1]", "values: [3]", DATA, "opd.route_field=level"),
        "opd.teachers",
        ["math", "code"],
        "two.parquet has level='2'",
        "add it to the `values`",
    ),
    "a field that is no value": (
        named(*ROUTES, DATA, "opd.route_field=reward_model"),
        "opd.route_field",
        "reward_model",
        "not one value",
        "opd.route_field=data_source",
    ),
    "a weight that nobody reads": (
        named(f"{ROUTES[0]}, weight: 2", ROUTES[1]),
        "opd.teachers.math.weight",
        2.0,
        "only opd.combine=average reads it",
        "drop it",
    ),
    "values that nobody reads": (
        named("weight: 2", ROUTES[1], "opd.combine=average"),
        "opd.teachers.code.values",
        ["apps"],
        "only opd.combine=route reads it",
        "drop it",
    ),
    **{
        f"weight {weight}": (
            named(f"weight: {weight}", "weight: 1", "opd.combine=average"),
            "opd.teachers.math.weight",
            float(weight),
            "must be positive",
            "drop the override",
        )
        for weight in ("0", "-1.0", "inf")
    },
    "the whole vocabulary of several": (
        named(*ROUTES, "opd.objective.support=full", SILENT),
        "opd.objective.support",
        "full",
        "the LM head of one teacher",
        "opd.objective.support=student_topk",
    ),
    **{
        f"an average on {support}": (
            averaged(f"opd.objective.support={support}", "opd.objective.k=16", SILENT),
            "opd.objective.support",
            support,
            COMMON,
            "opd.objective.support=student_topk",
        )
        for support in ("teacher_topk", "union", "intersection", "symmetric_difference", "full")
    },
    **{
        f"an average with a forward KL, {placement}": (
            averaged(f"opd.forward_kl.placement={placement}"),
            "opd.forward_kl.placement",
            placement,
            "reads the teacher's top-k",
            "opd.forward_kl.placement=none",
        )
        for placement in ("gated", "full", "random")
    },
    **{
        f"an average with {mask}": (
            averaged(f"opd.tokens.masks=[drop_q3,{mask}]"),
            "opd.tokens.masks",
            mask,
            ENTROPY,
            "opd.tokens.masks=[top_student_entropy]",
        )
        for mask in ("top_teacher_entropy", "top_either_entropy")
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_setting_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes))
    assert_names_it(str(refused.value), files, *expected)


WORKS = {
    "routed": named(*ROUTES),
    "routed, with data to look at": named(*ROUTES, DATA),
    "routed by a number": named("values: [1]", "values: [2]", DATA, "opd.route_field=level"),
    "routed by a field that a dataset of the user's adds": named(*ROUTES, DATA, "opd.route_field=subject"),
    "routed, with everything": named(
        *ROUTES,
        *("opd.objective.support=union", "opd.objective.k=16", SILENT),
        *("opd.forward_kl.placement=gated", "opd.tokens.masks=[top_teacher_entropy]"),
    ),
    "one named teacher": [f"{TEACHER}=null", "+opd.teachers={math: {path: @math, values: [gsm8k]}}"],
    "one named teacher's whole vocabulary": [
        *("+opd.teachers={math: {path: @math, values: [gsm8k]}}", "opd.objective.support=full", SILENT),
    ],
    "averaged": averaged(DATA),
    "averaged on the student's top-k": averaged(*TOPK),
    "averaged, with what needs no entropy": averaged(
        "opd.tokens.masks=[drop_q3,drop_destructive_q3,high_divergence,depth_window,top_student_entropy]",
        "opd.rewards=[reverse_kl,reverse_kl_baseline]",
        "opd.objective.k=4",
    ),
    "a tokenizer of its own": named(f"{ROUTES[0]}, tokenizer_path: @student", ROUTES[1]),
}


@pytest.mark.parametrize("case", WORKS)
def test_teachers_that_can_work_are_accepted(files: Files, case: str) -> None:
    preflight(files.config(*WORKS[case]))


def test_a_named_teacher_changes_only_what_it_sets(files: Files) -> None:
    changes = named(f"{ROUTES[0]}, nnodes: 2", ROUTES[1], "opd.teacher.chunk_rows=77")
    opd = parse_opd(files.config(*changes))
    assert list(opd.teachers) == ["math", "code"] and opd.teacher.path == "" and routed_by(opd) == "data_source"
    for name, nodes in {"math": 2, "code": 1}.items():
        actual = opd.teachers[name]
        assert isinstance(actual, NamedTeacherConfig) and actual.path == files.path(name)
        assert (actual.nnodes, actual.chunk_rows, actual.weight) == (nodes, 77, 1.0)
        common = {field: value for field, value in vars(opd.teacher).items() if field not in ("path", "nnodes")}
        assert common.items() <= vars(actual).items()
    assert opd.teachers["math"].values == ["gsm8k", "aime"] and opd.teachers["code"].values == ["apps"]


def test_one_teacher_is_routed_by_nothing(files: Files) -> None:
    assert routed_by(parse_opd(files.config(f"{TEACHER}=@math"))) is None
    assert routed_by(parse_opd(files.config(*averaged()))) is None
