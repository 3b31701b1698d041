"""The planner: counts against real models and real messages, sums by hand, verdicts that name the key."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preflight_harness import save_config
from recipes_harness import compose_ppo
from transformers import AutoConfig, AutoModelForCausalLM

from opd_verl.config.errors import ConfigError
from opd_verl.plan import memory
from opd_verl.plan.activations import PROBE_TOKENS, saved_bytes
from opd_verl.plan.arguments import checked, split
from opd_verl.plan.devices import DEVICES, GIB
from opd_verl.plan.layout import TeacherLayout
from opd_verl.plan.phases import PlannedRun, host_bytes, phases
from opd_verl.plan.planner import plan_run
from opd_verl.plan.seconds import GEN, OFFLOAD, WAIT, step_seconds
from opd_verl.plan.shape import shape_of
from opd_verl.plan.traffic import answer_bytes, teacher_traffic
from opd_verl.plan.verdict import misfits
from opd_verl.teacher.score import TeacherScore
from opd_verl.teacher.wire import encode

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN3_1_7B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}
QWEN3_8B = QWEN3_1_7B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
LLAMA_70B = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with configs of published sizes."""
    root = tmp_path_factory.mktemp("models")
    for name, kind, sizes in (
        ("1.7B", "qwen3", QWEN3_1_7B),
        ("8B", "qwen3", QWEN3_8B),
        ("70B", "llama", LLAMA_70B),
    ):
        AutoConfig.for_model(kind, **sizes).save_pretrained(root / name)
    return root


def planned(models: Path, *arguments: str, device: str = "h100", length: int | None = None) -> PlannedRun:
    """`student` and `teacher` by the name of their folder."""
    paths = [
        argument if "=" not in argument or "/" in argument else argument.replace("=@", f"={models}/")
        for argument in arguments
    ]
    _, overrides = split(paths)
    return plan_run(compose_ppo(*overrides), device, length)


def opd_run(models: Path, *arguments: str, **options: Any) -> PlannedRun:
    return planned(models, "recipe=opd", "student=@1.7B", "teacher=@8B", *arguments, **options)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_shape_is_that_of_the_real_model(kind: str, tied: bool) -> None:
    config = AutoConfig.for_model(kind, **SMALL, tie_word_embeddings=tied)
    model, shape = AutoModelForCausalLM.from_config(config), shape_of(config)
    assert shape.total == shape.active == sum(weight.numel() for weight in model.parameters())
    assert shape.root == shape.total - sum(weight.numel() for weight in model.model.layers.parameters())
    assert (shape.layers, shape.vocabulary, shape.tied) == (3, 96, tied)
    assert shape.matrix == shape.total - (0 if tied else 96 * 32)
    cache = model(torch.zeros(1, 5, dtype=torch.long)).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape.kv_width * 5 == held


def test_a_mixture_of_experts_multiplies_with_the_chosen_ones_alone() -> None:
    sizes = SMALL | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = AutoConfig.for_model("qwen3_moe", **sizes)
    shape = shape_of(config)
    assert shape.total - shape.active == 3 * 6 * (3 * 32 * 16), "three layers, six idle experts of three matrices each"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_activations_are_those_of_a_real_backward_pass(dtype: torch.dtype) -> None:
    config = AutoConfig.for_model("qwen3", **SMALL)
    real = [really_saved(config, layers, dtype) for layers in (1, 2)]
    assert saved_bytes(config, dtype) == pytest.approx((real[1] - real[0]) / PROBE_TOKENS, rel=0.01)


def really_saved(config: Any, layers: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a real model's body."""
    config.num_hidden_layers = layers
    config.layer_types = ["full_attention"] * layers
    body = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).model
    kept: list[torch.Tensor] = []
    hidden = torch.randn(1, PROBE_TOKENS, config.hidden_size, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda item: kept.append(item) or item, lambda item: item):
        body(inputs_embeds=hidden, use_cache=False)
    own = {weight.data_ptr() for weight in body.parameters()}
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for pointer, size in sizes.items() if pointer not in own)


@pytest.mark.parametrize(
    ("recipe", "changes"), [("opd", []), ("opd_topk", []), ("eopd", []), ("opd_full", []), ("opd_topk", ["32"])]
)
def test_the_wire_is_what_an_encoded_answer_weighs(models: Path, recipe: str, changes: list[str]) -> None:
    wide = ["opd.teacher.wire_dtype=float32"] if changes else []
    run = planned(models, f"recipe={recipe}", "student=@1.7B", "teacher=@8B", *wide)
    teacher, model = run.teachers[""]
    length, half = 2000, torch.float32 if wide else torch.float16
    k, at = teacher.topk, teacher.at_ids
    score = TeacherScore(
        log_q=torch.zeros(length),
        entropy=torch.zeros(length),
        valid=torch.ones(length, dtype=torch.bool),
        topk_ids=torch.zeros(length, k, dtype=torch.int32) if k else None,
        topk_log_q=torch.zeros(length, k, dtype=half) if k else None,
        at_ids_log_q=torch.zeros(length, at, dtype=half) if at else None,
        hidden=torch.zeros(length, model.hidden, dtype=torch.bfloat16) if teacher.hidden else None,
    )
    assert answer_bytes(teacher, model) == pytest.approx(len(encode(score, "key", 0)) / length, rel=0.01)


def test_the_training_state_is_sixteen_bytes_per_parameter_over_the_shards(models: Path) -> None:
    for cluster, shards in {"1x1": 1, "1x8": 8, "4x8": 8}.items():
        run = opd_run(models, f"cluster={cluster}")
        parts = phases(run)["update"]
        states = sum(parts[name] for name in (memory.PARAMS, memory.GRADIENTS, memory.OPTIMIZER))
        assert states == pytest.approx(16 * run.student.total / shards)


def test_offloaded_state_leaves_the_device_while_it_samples(models: Path) -> None:
    on, off = opd_run(models, "cluster=1x1"), opd_run(models, "cluster=1x1", *kept())
    for run, gone in ((on, True), (off, False)):
        parts = phases(run)["rollout"]
        assert ((memory.PARAMS in parts) or (memory.OPTIMIZER in parts)) is not gone
    moved = 12 * on.student.total
    assert host_bytes(on) - host_bytes(off) == pytest.approx(moved)
    server = (OFFLOAD in seconds(on), OFFLOAD in seconds(off))
    assert server == (True, False)


def kept() -> list[str]:
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    return [f"{fsdp}.param_offload=false", f"{fsdp}.optimizer_offload=false"]


def seconds(run: PlannedRun) -> dict[str, float]:
    cache = phases(run)["rollout"][memory.CACHE]
    return step_seconds(run.trainer, run.server, run.student, run.device, cache, run.teachers)


def test_logits_exist_on_the_plain_path_alone(models: Path) -> None:
    fused, plain = opd_run(models, "cluster=1x8"), opd_run(models, "cluster=1x8", "opd.fused=false")
    tokens = plain.trainer.update_tokens
    assert memory.LOGITS not in phases(fused)["update"]
    assert phases(plain)["update"][memory.LOGITS] == tokens * 151936 * 10
    assert phases(fused)["update"][memory.HEAD] < 0.2 * tokens * 151936 * 10


def test_a_teacher_spread_over_devices_keeps_its_embeddings_whole(models: Path) -> None:
    run = planned(models, "recipe=opd", "cluster=16x8", "student=@8B", "teacher=@70B")
    weights, (teacher, model) = phases(run)["teacher"][memory.TEACHER], run.teachers[""]
    assert teacher.shards == 4
    assert weights == 2 * (model.root + model.layers * model.layer / 4 + 2 * model.layer)


def test_a_teacher_of_its_own_hides_behind_generation_and_a_shared_one_does_not(models: Path) -> None:
    halves = ["opd.teacher.colocate=false", "opd.teacher.n_gpus_per_node=4", "trainer.n_gpus_per_node=4"]
    shared, own = opd_run(models, "cluster=1x8"), opd_run(models, "cluster=1x8", *halves)
    assert seconds(own)[WAIT] < 0.2 * seconds(shared)[WAIT]
    assert seconds(own)[GEN] > seconds(shared)[GEN]


def test_a_longer_mean_response_costs_in_proportion(models: Path) -> None:
    short, long = (opd_run(models, "cluster=1x8", length=length) for length in (1000, 2000))
    assert 1.8 < seconds(long)[GEN] / seconds(short)[GEN] < 2.3
    traffic = [teacher_traffic(run.trainer, *run.teachers[""]).answered for run in (short, long)]
    assert traffic[1] == 2 * traffic[0]


# (arguments, what the verdict names)
TOO_MUCH: dict[str, tuple[list[str], str]] = {
    "teacher": (["cluster=1x8", "student=@8B", "teacher=@70B"], "opd.teacher.colocate=false"),
    "teacher of its own": (
        ["cluster=16x8", "student=@8B", "teacher=@70B", "opd.teacher.shards=1"],
        "opd.teacher.shards=2",
    ),
    "training state": (["cluster=1x1", "student=@8B", "teacher=@8B"], "trainer.n_gpus_per_node"),
    "logits": (
        ["cluster=1x8", "student=@8B", "teacher=@8B", "opd.fused=false"],
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    ),
    "rollout": (
        ["cluster=1x8", "student=@1.7B", "teacher=@8B", "actor_rollout_ref.rollout.gpu_memory_utilization=0.95"],
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.91",
    ),
    "KV cache": (
        ["cluster=1x8", "student=@8B", "teacher=@8B", "actor_rollout_ref.rollout.gpu_memory_utilization=0.2"],
        "raise actor_rollout_ref.rollout.gpu_memory_utilization",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_does_not_fit_is_said_with_the_key_to_change(name: str, models: Path) -> None:
    arguments, key = TOO_MUCH[name]
    device = "a100-40" if name == "logits" else "h100"
    run = planned(models, "recipe=opd", *arguments, device=device)
    actual = misfits(run, phases(run))
    assert any(key in str(problem) for problem in actual), [str(problem) for problem in actual]


def test_the_remedy_for_a_large_teacher_works(models: Path) -> None:
    run = planned(models, "recipe=opd", "cluster=16x8", "student=@8B", "teacher=@70B", "opd.teacher.shards=1")
    teacher, model = run.teachers[""]
    for _ in range(3):
        if not misfits(run, phases(run)):
            return
        teacher = dataclasses.replace(teacher, shards=2 * teacher.shards)
        run = dataclasses.replace(run, teachers={"": (teacher, model)})
    assert not misfits(run, phases(run))


@pytest.mark.parametrize(
    ("student", "teacher", "clusters"),
    [("1.7B", "8B", ["1x1", "1x8", "2x8", "4x8"]), ("8B", "70B", ["16x8"])],
)
@pytest.mark.parametrize("recipe", ["opd", "opd_topk", "opd_full", "eopd", "opd_grpo"])
def test_the_pairs_that_the_clusters_name_fit(
    recipe: str, student: str, teacher: str, clusters: list[str], models: Path
) -> None:
    for cluster in clusters:
        run = planned(models, f"recipe={recipe}", f"cluster={cluster}", f"student=@{student}", f"teacher=@{teacher}")
        assert misfits(run, phases(run)) == []


def test_every_part_is_a_finite_size(models: Path) -> None:
    for device in DEVICES:
        for parts in phases(opd_run(models, "cluster=1x8", device=device)).values():
            assert all(0 <= size < 1e4 * GIB and np.isfinite(size) for size in parts.values())


def test_a_teacher_layout_knows_its_devices() -> None:
    common: Any = dict.fromkeys((field.name for field in dataclasses.fields(TeacherLayout)), 0)
    own = TeacherLayout(**common | {"replicas": 3, "shards": 2, "colocated": False})
    assert (own.devices, dataclasses.replace(own, colocated=True).devices) == (6, 0)


@pytest.mark.parametrize("named", [False, True])
def test_a_teacher_that_is_not_there_is_said_with_the_key_to_set(named: bool, models: Path) -> None:
    key = "opd.teachers.math.path" if named else "opd.teacher.path"
    teacher = [f"+{key}=/no/such", "+opd.teachers.math.values=[math]"] if named else [f"{key}=/no/such"]
    with pytest.raises(ConfigError, match="no such model folder") as refused:
        planned(models, "recipe=opd", "cluster=1x8", "student=@1.7B", *teacher)
    assert (refused.value.key, refused.value.remedy.partition("=")[0]) == (key, key)


def test_a_teacher_is_a_model_or_what_runs_it() -> None:
    own, overrides = split(["recipe=opd", "teacher=vllm", "teacher=/models/big", "student=a/b", "device=h200"])
    path = "opd.teacher.path='/models/big'"
    assert overrides == ["recipe=opd", "teacher=vllm", path, "actor_rollout_ref.model.path='a/b'"]
    assert own["device"] == "h200"


def test_options_of_its_own_are_checked() -> None:
    assert checked({"device": "H100", "response_tokens": "7"}) == ("h100", 7)
    with pytest.raises(ConfigError, match="known are h100"):
        checked({"device": "tpu", "response_tokens": ""})
    with pytest.raises(ConfigError, match="positive number"):
        checked({"device": "h100", "response_tokens": "-1"})


def test_the_command_says_what_fits_and_what_does_not(tmp_path: Path) -> None:
    save_config(tmp_path / "student", max_position_embeddings=65536)
    save_config(tmp_path / "teacher", max_position_embeddings=65536)
    command = [sys.executable, "-m", "opd_verl.plan", "recipe=opd", "cluster=1x8", f"student={tmp_path}/student"]
    fits = run_command(*command, f"teacher={tmp_path}/teacher")
    assert fits.returncode == 0 and "fits on h100" in fits.stdout and "| **in all** |" in fits.stdout, fits.stderr
    missing = run_command(*command, "teacher=/no/such/teacher")
    assert missing.returncode == 1 and "no such model folder" in missing.stderr
    assert "Remedy: opd.teacher.path=/path/to/model" in missing.stderr


def run_command(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
