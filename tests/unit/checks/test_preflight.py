"""A run that cannot work is refused in seconds, with one message that names the key, its value and the remedy."""

import sys
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from omegaconf import DictConfig, OmegaConf
from preflight_harness import (
    ACTOR,
    CONTEXT,
    LOSS_MODE,
    SILENT,
    SP,
    STUDENT,
    TEACHER,
    Files,
    assert_names_it,
)
from recipes_harness import OPD_RECIPES, compose_ppo

from opd_verl.checks import preflight as module
from opd_verl.checks.preflight import Preflight, preflight
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, parse_opd
from opd_verl.cpu.selected import cpu_selected
from opd_verl.teacher.client.start import replica_count

OTHER_MACHINE = ["trainer.device=cuda"] if cpu_selected() else ["cluster=local_cpu"]
PLACEMENT = "opd.forward_kl.placement"
TOPK_SUPPORTS = ["student_topk", "teacher_topk", "union", "intersection", "symmetric_difference"]
OBJECTIVE_OF_A_USER = "an_objective_of_a_test_user"


# (changes, key, value, part of the problem, part of the remedy); `@name` as in Files.overrides
REFUSED: dict[str, tuple[list[str], str, Any, str, str]] = {
    "no student folder": ([f"{STUDENT}=@nope"], STUDENT, "@nope", "no such model folder", f"{STUDENT}=/path"),
    "no teacher folder": ([f"{TEACHER}=@nope"], TEACHER, "@nope", "no such model folder", f"{TEACHER}=/path"),
    "student unset": ([f"{STUDENT}=null"], STUDENT, None, "no such model folder", f"{STUDENT}=/path"),
    "teacher unset": ([f"{TEACHER}=null"], TEACHER, None, "no teacher is set", f"{TEACHER}=/path"),
    "teacher empty": ([f"{TEACHER}="], TEACHER, None, "no teacher is set", f"{TEACHER}=/path"),
    "home is not expanded": ([f"{TEACHER}='~/teacher'"], TEACHER, "~/teacher", "no such model folder", "/path"),
    "no model in the folder": (
        [f"{TEACHER}=@empty"],
        TEACHER,
        "@empty",
        "no model config there",
        "give a model folder",
    ),
    "no tokenizer": (
        [f"{TEACHER}=@no_tokenizer"],
        TEACHER,
        "@no_tokenizer",
        "no tokenizer there",
        "opd.teacher.tokenizer_path=",
    ),
    "unknown context": (
        ["opd.context.name=2c"],
        "opd.context.name",
        "2c",
        "no such context (there are: 1c, 1c1w, 1c_large, 3c, sum_1c, sum_1c1w)",
        "opd.plugins",
    ),
    "context without room": (
        ["opd.context.name=1c", "opd.context.max_tokens=0"],
        "opd.context.max_tokens",
        0,
        "must be positive",
        "drop the override",
    ),
    "context too long": (
        ["opd.context.name=1c", "opd.context.max_tokens=60"],
        TEACHER,
        "@teacher",
        "context of 128 tokens, but data.max_prompt_length + data.max_response_length + opd.context.max_tokens = 140",
        "opd.context.max_tokens by 12",
    ),
    "sync of another model": (
        ["opd.teacher.sync_every=1"],
        "opd.teacher.sync_every",
        1,
        "is not the student",
        "opd.teacher.path='${actor_rollout_ref.model.path}'",
    ),
    "sync backwards": (
        ["opd.teacher.sync_every=-1"],
        "opd.teacher.sync_every",
        -1,
        "must not be negative",
        "opd.teacher.sync_every=0",
    ),
    "sync of adapters": (
        ["opd.teacher.sync_every=1", f"{TEACHER}=@student", "actor_rollout_ref.model.lora_rank=8"],
        "opd.teacher.sync_every",
        1,
        "LoRA adapters are not merged",
        "opd.teacher.sync_every=0",
    ),
    "samples backwards": (
        ["opd.samples.every=-1"],
        "opd.samples.every",
        -1,
        "must not be negative",
        "opd.samples.every=0 for no samples",
    ),
    "samples of nothing": (["opd.samples.count=0"], "opd.samples.count", 0, "must be positive", "opd.samples.every=0"),
    "no room in the queue": (["opd.teacher.max_queued=0"], "opd.teacher.max_queued", 0, "must be positive", "drop the"),
    "unknown key": (["+opd.nope=1"], "opd.nope", 1, "'nope' not in 'OpdConfig'", "recipe/opd.yaml"),
    "unknown key below": (["+opd.teacher.nope=1"], "opd.teacher.nope", 1, "not in 'TeacherConfig'", "recipe/opd.yaml"),
    "wrong type": (["opd.objective.k=many"], "opd.objective.k", "many", "converted to Integer", "recipe/opd.yaml"),
    "wrong choice": (
        ["opd.objective.support=all"],
        "opd.objective.support",
        "all",
        "expected one of [sampled, student_topk, teacher_topk, union,",
        "recipe/opd.yaml",
    ),
    "other tokenizer": (
        [f"{TEACHER}=@other_tokenizer"],
        TEACHER,
        "@other_tokenizer",
        "(95 and 96 tokens, 1 not shared)",
        "the student's model family",
    ),
    "other eos": (
        [f"{TEACHER}=@other_eos"],
        TEACHER,
        "@other_eos",
        "with 'w2', the student with 'w1'",
        "one eos_token",
    ),
    "teacher with too few rows": (
        [f"{TEACHER}=@too_few_rows"],
        TEACHER,
        "@too_few_rows",
        "vocab_size 88 is below the tokenizer's 96",
        "the tokenizer that belongs",
    ),
    "student with too few rows": (
        [f"{STUDENT}=@too_few_rows"],
        STUDENT,
        "@too_few_rows",
        "vocab_size 88 is below the tokenizer's 96",
        "the tokenizer that belongs",
    ),
    "teacher temperature": (
        ["opd.teacher.temperature=0.7"],
        "opd.teacher.temperature",
        0.7,
        "the rollout temperature is 1.0",
        "leave it unset",
    ),
    "temperature 0": (
        ["actor_rollout_ref.rollout.temperature=0"],
        "actor_rollout_ref.rollout.temperature",
        0,
        "must be positive",
        "use 1.0",
    ),
    "teacher's context": (
        [f"{TEACHER}=@short_context"],
        TEACHER,
        "@short_context",
        "context of 70 tokens, but data.max_prompt_length + data.max_response_length = 80",
        "lower data.max_response_length by 10",
    ),
    "student's context": (
        [f"{STUDENT}=@short_context"],
        STUDENT,
        "@short_context",
        "context of 70 tokens",
        "lower data.max_response_length by 10",
    ),
    "k above the vocabulary": (
        ["opd.objective.k=97"],
        "opd.objective.k",
        97,
        "the vocabulary has 96 tokens",
        "opd.objective.k=16",
    ),
    "k 0 for a hook": (
        ["opd.rewards=[reverse_kl,reverse_kl_baseline]"],
        "opd.objective.k",
        0,
        "needs k >= 1",
        "opd.objective.k=16",
    ),
    "k negative": (["opd.objective.k=-1"], "opd.objective.k", -1, "needs k >= 1", "opd.objective.k=16"),
    "support without its loss": (
        ["opd.objective.support=student_topk", "opd.objective.k=16"],
        LOSS_MODE,
        "opd",
        "opd.objective.support=student_topk, opd.mix.task=0.0 need opd_none",
        f"{LOSS_MODE}=opd_none",
    ),
    "unknown loss": ([f"{LOSS_MODE}=nope"], LOSS_MODE, "nope", "vanilla", f"{LOSS_MODE}=opd"),
    "unknown hook": (["opd.rewards=[nope]"], "opd.rewards", "nope", "there are: reverse_kl", "opd.plugins"),
    "no hook": (["opd.rewards=[]"], "opd.rewards", [], "nothing to learn from", "opd.rewards=[reverse_kl]"),
    "no plugin module": (
        ["opd.plugins=[no_such_module]"],
        "opd.plugins",
        "no_such_module",
        "No module named",
        "PYTHONPATH",
    ),
    "kl in reward": (
        ["algorithm.use_kl_in_reward=true"],
        "algorithm.use_kl_in_reward",
        True,
        "needs False",
        "drop the override",
    ),
    "fused kernels": (
        ["actor_rollout_ref.model.use_fused_kernels=true"],
        "actor_rollout_ref.model.use_fused_kernels",
        True,
        "needs False",
        "drop the override",
    ),
    "other estimator": (
        ["algorithm.adv_estimator=grpo"],
        "algorithm.adv_estimator",
        "grpo",
        "recipe=opd needs opd",
        "recipe=grpo",
    ),
    "other trainer": (["trainer.v1.trainer_mode=sync"], "trainer.v1.trainer_mode", "sync", "needs opd", "drop"),
    "old trainer": (["trainer.use_v1=false"], "trainer.use_v1", False, "needs True", "drop the override"),
    "other engine": (["model_engine=megatron"], "model_engine", "megatron", "needs dp", "drop the override"),
    "verl's distillation": (["distillation.enabled=true"], "distillation.enabled", True, "needs False", "drop"),
    "bypass": (
        ["algorithm.rollout_correction.bypass_mode=true"],
        "algorithm.rollout_correction.bypass_mode",
        True,
        "not available",
        "algorithm.rollout_correction.bypass_mode=null",
    ),
    "importance weights": (
        ["algorithm.rollout_correction.rollout_is=token"],
        "algorithm.rollout_correction.rollout_is",
        "token",
        "not available",
        "algorithm.rollout_correction.rollout_is=null",
    ),
    "no training data": (
        ["data.train_files=[@prompts,@nope.parquet]"],
        "data.train_files",
        "@nope.parquet",
        "no such file",
        "data.train_files=/path/to",
    ),
    "prompts without the column that verl's reward manager reads": (
        ["data.train_files=@bare.parquet"],
        "data.train_files",
        "@bare.parquet",
        "no column 'reward_model'",
        "ground_truth",
    ),
    "nucleus sampling": (
        ["actor_rollout_ref.rollout.top_p=0.9"],
        "actor_rollout_ref.rollout.top_p",
        0.9,
        "truncated distribution",
        "actor_rollout_ref.rollout.top_p=1.0",
    ),
    "top-k sampling": (
        ["actor_rollout_ref.rollout.top_k=50"],
        "actor_rollout_ref.rollout.top_k",
        50,
        "truncated distribution",
        "actor_rollout_ref.rollout.top_k=-1",
    ),
    "no validation data": (["data.val_files=null"], "data.val_files", None, "no such file", "data.val_files=/path/to"),
    "other machine": (
        OTHER_MACHINE,
        "trainer.device",
        "cuda" if cpu_selected() else "cpu",
        "this ",
        "cluster=local_cpu",
    ),
    "teacher's dtype": (
        ["opd.teacher.dtype=float16"],
        "opd.teacher.dtype",
        "float16",
        "bfloat16",
        "opd.teacher.dtype=",
    ),
    "teacher's dtype on the wire": (
        ["opd.teacher.wire_dtype=bfloat16"],
        "opd.teacher.wire_dtype",
        "bfloat16",
        "float16 or float32",
        "opd.teacher.wire_dtype=float16",
    ),
    "no replicas": (
        ["opd.teacher.n_gpus_per_node=0"],
        "opd.teacher.n_gpus_per_node",
        0,
        "must be positive",
        "drop the override",
    ),
}
"""Every bad input that this project knows of: recipe=opd with one thing changed."""
INFERENCE = "distillation.teacher_models.teacher_model.inference"
SUPPORT = "opd.objective.support"
AVERAGE = "opd.combine=average"
QUIET = f"{LOSS_MODE}=opd_none"
REFUSED_SERVED: dict[str, tuple[list[str], str, Any, str, str]] = {
    "another temperature": (
        ["actor_rollout_ref.rollout.temperature=0.7"],
        "opd.teacher.temperature",
        0.7,
        "temperature 1",
        "teacher=scorer",
    ),
    "a repository's own code": (
        ["opd.teacher.trust_remote_code=true"],
        "opd.teacher.trust_remote_code",
        True,
        "do not pass it",
        "teacher=scorer",
    ),
    "weights that follow the student": (
        ["opd.teacher.sync_every=1"],
        "opd.teacher.sync_every",
        1,
        "keeps its weights",
        "teacher=scorer",
    ),
    "data-parallel servers": (
        [f"{INFERENCE}.data_parallel_size=2"],
        f"{INFERENCE}.data_parallel_size",
        2,
        "tensor-parallel",
        "opd.teacher.shards",
    ),
    "the student's ids": (
        [f"{SUPPORT}=student_topk", "opd.objective.k=8", QUIET],
        SUPPORT,
        "student_topk",
        "student's ids",
        "teacher_topk",
    ),
    "hidden states": ([f"{SUPPORT}=full", QUIET], SUPPORT, "full", "nor for hidden states", "teacher=scorer"),
    "the gate": (
        ["opd.forward_kl.placement=gated"],
        "opd.forward_kl.placement",
        "gated",
        "reads the teacher's entropy",
        "=full",
    ),
    "a mask by entropy": (
        ["opd.tokens.masks=[top_teacher_entropy]"],
        "opd.tokens.masks",
        "top_teacher_entropy",
        "entropy",
        "student_entropy",
    ),
    "an unknown engine": (
        ["opd.teacher.engine=sglang"],
        "opd.teacher.engine",
        "sglang",
        "[scorer, vllm]",
        "recipe/opd.yaml",
    ),
    "no position for the token that it generates": (
        [f"data.max_response_length={CONTEXT - 16}"],
        TEACHER,
        "@teacher",
        "+ 1 that vLLM generates = 129",
        "by 1",
    ),
}
"""Bad input of recipe=opd teacher=vllm."""
COLOCATED = "opd.teacher.colocate=true"
REFUSED_COLOCATED: dict[str, tuple[list[str], str, Any, str, str]] = {
    "shards": ([COLOCATED, "opd.teacher.shards=2"], "opd.teacher.shards", 2, "lies whole", "opd.teacher.shards=1"),
    "servers": ([COLOCATED, "teacher=vllm"], "opd.teacher.colocate", True, "does not leave", "teacher=scorer"),
    "more than fit": (
        [COLOCATED, "+opd.teachers={a: {path: @teacher}, b: {path: @teacher}, c: {path: @teacher}}", AVERAGE],
        "opd.teachers",
        ["a", "b", "c"],
        "room for 2 beside the actor (opd.teachers.a, opd.teachers.b, opd.teachers.c are)",
        "colocate=false",
    ),
}
"""Bad input of a teacher on the trainer's devices."""
REFUSED_TOPK: dict[str, tuple[list[str], str, Any, str, str]] = {
    "k 0 with a top-k support": (["opd.objective.k=0"], "opd.objective.k", 0, "needs k >= 1", "opd.objective.k=16"),
    "ulysses": (["opd.fused=false", f"{ACTOR}.{SP}=2"], f"{ACTOR}.{SP}", 2, "not gathered", f"{SP}=1"),
}
"""Bad input of recipe=opd_topk."""


LOW, HIGH = "must lie in 0.0 .. 1.0", "must lie in 0.0 .. inf"
NOT_A_NUMBER_HERE: dict[str, tuple[float, str]] = {
    "opd.forward_kl.share": (1.5, LOW),
    "opd.forward_kl.coefficient": (-1.0, HIGH),
    "opd.tokens.share": (1.01, LOW),
    "opd.tokens.low_entropy": (-0.1, HIGH),
    "opd.tokens.divergence_quantile": (-0.5, LOW),
    "opd.tokens.first_position": (-1, "must lie in 0 .. inf"),
    "opd.tokens.correct": (-1.0, HIGH),
    "opd.tokens.incorrect": (-0.5, HIGH),
    "opd.tokens.tail_tokens": (0, "must lie in 1 .. inf"),
    "opd.tokens.half_life": (0.0, "must be positive"),
    "opd.advantage.gamma": (1.01, LOW),
    "opd.advantage.shaping_alpha": (-0.1, HIGH),
    "opd.advantage.shaping_kappa": (0.0, "must be positive"),
    "opd.advantage.clamp": (-1.0, "must be positive"),
    "opd.mix.opd": (-1.0, HIGH),
    "opd.mix.task": (-0.5, HIGH),
    "opd.fused_rows": (0, "must be positive"),
}
"""A value outside the range of every number of the section, and what the message says."""
TOPK = ["opd.objective.support=student_topk", "opd.objective.k=16", SILENT]
REFUSED_OBJECTIVE: dict[str, tuple[list[str], str, Any, str, str]] = {
    **{
        f"k 0 with {support}": (
            [f"opd.objective.support={support}", SILENT],
            "opd.objective.k",
            0,
            "a top-k support needs k >= 1",
            "opd.objective.k=16",
        )
        for support in TOPK_SUPPORTS
    },
    **{
        f"jsd with beta {beta}": (
            [*TOPK, "opd.objective.divergence=jsd", f"opd.objective.beta={beta}"],
            "opd.objective.beta",
            beta,
            "must lie between 0 and 1",
            "opd.objective.beta=0.5",
        )
        for beta in (0.0, 1.0, -0.5)
    },
    **{
        f"paper_compat on {support}": (
            [f"opd.objective.support={support}", "opd.objective.k=16", "opd.objective.paper_compat=true", *loss],
            "opd.objective.paper_compat",
            True,
            f"paper_compat is a policy gradient on a top-k, not on {support}",
            "opd.objective.support=student_topk",
        )
        for support, loss in {"sampled": [], "full": [SILENT]}.items()
    },
    **{
        f"an objective of the user's on {support}": (
            [f"opd.objective.support={support}", f"opd.objective.name={OBJECTIVE_OF_A_USER}", SILENT],
            "opd.objective.support",
            support,
            f"reads a top-k, not {support}",
            "opd.objective.support=student_topk",
        )
        for support in ("sampled", "full")
    },
    "unknown objective": (
        [*TOPK, "opd.objective.name=nope"],
        "opd.objective.name",
        "nope",
        "no such objective (there are: ",
        "opd.plugins",
    ),
    "unknown mask": (["opd.tokens.masks=[drop_q3,nope]"], "opd.tokens.masks", "nope", "drop_q3", "opd.plugins"),
    "a weight is not a mask": (
        ["opd.tokens.masks=[correctness]"],
        "opd.tokens.masks",
        "correctness",
        "no such token mask",
        "opd.plugins",
    ),
    "unknown weight": (["opd.tokens.weights=[nope]"], "opd.tokens.weights", "nope", "depth_decay", "opd.plugins"),
    "forward KL without ids": (
        [f"{PLACEMENT}=gated", "opd.forward_kl.k=0"],
        "opd.forward_kl.k",
        0,
        "needs at least one id",
        "opd.forward_kl.k=16",
    ),
    "forward KL on top of the whole vocabulary": (
        ["opd.objective.support=full", SILENT, f"{PLACEMENT}=gated"],
        PLACEMENT,
        "gated",
        "support=full reads the whole vocabulary",
        "opd.objective.support=sampled",
    ),
    "forward KL on more ids than there are": (
        [f"{PLACEMENT}=full", "opd.forward_kl.k=97"],
        "opd.forward_kl.k",
        97,
        "the vocabulary has 96 tokens",
        "opd.forward_kl.k=16",
    ),
    "nothing to learn from": (["opd.mix.opd=0"], "opd.mix.opd", 0.0, "both weights of the mixture are 0", "opd=1"),
    "unknown estimator": (
        ["opd.mix.task=1", "opd.mix.estimator=nope"],
        "opd.mix.estimator",
        "nope",
        "verl has no such advantage estimator",
        "opd.mix.estimator=grpo",
    ),
    **{
        f"estimator {name}": (
            ["opd.mix.task=1", f"opd.mix.estimator={name}"],
            "opd.mix.estimator",
            name,
            "needs more than task rewards",
            "opd.mix.estimator=grpo",
        )
        for name in ("gae", "remax", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline")
    },
    "exact objective, a policy loss without an advantage": (
        [*TOPK, f"{LOSS_MODE}=opd"],
        LOSS_MODE,
        "opd",
        "need opd_none",
        f"{LOSS_MODE}=opd_none",
    ),
    "sampled objective without a policy loss": ([SILENT], LOSS_MODE, "opd_none", "need opd", f"{LOSS_MODE}=opd"),
    "exact objective with a task reward, which needs a policy loss": (
        [*TOPK, "opd.mix.task=0.5"],
        LOSS_MODE,
        "opd_none",
        "opd.mix.task=0.5 need opd",
        f"{LOSS_MODE}=opd",
    ),
    "ulysses with the fused head": (
        [f"{ACTOR}.fsdp_config.{SP}=2"],
        f"{ACTOR}.fsdp_config.{SP}",
        2,
        "the fused LM head does not gather",
        "opd.fused=false",
    ),
    "ulysses by its old key": ([f"{ACTOR}.{SP}=2"], f"{ACTOR}.{SP}", 2, "the fused LM head", "opd.fused=false"),
    "ulysses with ids": (
        [f"{ACTOR}.fsdp_config.{SP}=2", "opd.fused=false", f"{PLACEMENT}=gated"],
        f"{ACTOR}.fsdp_config.{SP}",
        2,
        "not gathered",
        f"{ACTOR}.fsdp_config.{SP}=1",
    ),
    "ulysses with the whole vocabulary": (
        [f"{ACTOR}.fsdp_config.{SP}=2", "opd.fused=false", "opd.objective.support=full", SILENT],
        f"{ACTOR}.fsdp_config.{SP}",
        2,
        "not gathered",
        f"{ACTOR}.fsdp_config.{SP}=1",
    ),
    "softcapped student": (
        [f"{STUDENT}=@softcapped"],
        STUDENT,
        "@softcapped",
        "its config.final_logit_softcapping=30.0 changes the logits",
        "opd.fused=false",
    ),
    "student that scales its logits": (
        [f"{STUDENT}=@scaled"],
        STUDENT,
        "@scaled",
        "its config.logits_scaling=8.0 changes the logits",
        "opd.fused=false",
    ),
    "unknown truncation policy": (
        ["opd.tokens.truncated=cut"],
        "opd.tokens.truncated",
        "cut",
        "expected one of [keep, mask, mask_tail, drop]",
        "recipe/opd.yaml",
    ),
    "unknown tail": (["opd.objective.tail=cut"], "opd.objective.tail", "cut", "renorm_teacher", "recipe/opd.yaml"),
    "unknown divergence": (["opd.objective.divergence=kl"], "opd.objective.divergence", "kl", "jsd", "recipe/opd.yaml"),
    "unknown placement": ([f"{PLACEMENT}=some"], PLACEMENT, "some", "gated", "recipe/opd.yaml"),
}
"""Bad input of the sections objective, tokens, advantage and mix."""


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_setting_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes))
    assert_names_it(str(refused.value), files, *expected)
    assert refused.value.key == expected[0]


@pytest.mark.parametrize("case", REFUSED_TOPK)
def test_a_bad_setting_of_the_topk_recipe_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED_TOPK[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes, recipe="opd_topk"))
    assert_names_it(str(refused.value), files, *expected)


@pytest.mark.parametrize("case", REFUSED_SERVED)
def test_what_a_server_cannot_do_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED_SERVED[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config("teacher=vllm", *changes))
    assert_names_it(str(refused.value), files, *expected)


@pytest.mark.parametrize("case", REFUSED_COLOCATED)
def test_what_a_colocated_teacher_cannot_do_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED_COLOCATED[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes))
    assert_names_it(str(refused.value), files, *expected)


def test_a_colocated_teacher_has_the_trainers_devices(files: Files) -> None:
    config = files.config(COLOCATED, "trainer.nnodes=2", "trainer.n_gpus_per_node=4")
    teacher = parse_opd(config).teacher
    assert (teacher.nnodes, teacher.n_gpus_per_node, replica_count(teacher)) == (2, 4, 8)
    preflight(config)


@pytest.mark.parametrize("changes", [[], ["opd.objective.support=teacher_topk", "opd.objective.k=8", QUIET]])
def test_what_a_server_can_do_is_accepted(files: Files, changes: list[str]) -> None:
    config = files.config("teacher=vllm", f"data.max_response_length={CONTEXT - 17}", *changes)
    assert config.opd.teacher.engine == "vllm"
    preflight(config)
    assert files.config("teacher=scorer").opd.teacher.engine == "scorer"


@pytest.mark.parametrize("case", REFUSED_OBJECTIVE)
def test_a_bad_objective_is_refused(files: Files, objective_of_a_user: None, case: str) -> None:
    changes, *expected = REFUSED_OBJECTIVE[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes))
    assert_names_it(str(refused.value), files, *expected)
    assert refused.value.key == expected[0]


@pytest.mark.parametrize("key", NOT_A_NUMBER_HERE)
def test_a_number_out_of_its_range_is_refused(files: Files, key: str) -> None:
    value, problem = NOT_A_NUMBER_HERE[key]
    config = deepcopy(files.config())
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError) as refused:
        preflight(config)
    assert_names_it(str(refused.value), files, key, value, problem, "drop the override")


def test_every_number_of_the_section_has_a_range() -> None:
    """A new float must be given a range, or named here as one that may be anything."""
    typed: Any = OmegaConf.structured(OpdConfig)
    numbers = {
        f"opd.{section}.{name}"
        for section in ("objective", "forward_kl", "tokens", "advantage", "mix")
        for name, value in typed[section].items()
        if isinstance(value, float)
    }
    checked_elsewhere, free = {"opd.objective.beta"}, {"opd.forward_kl.tau"}
    assert numbers - checked_elsewhere - free <= set(NOT_A_NUMBER_HERE)


@pytest.fixture
def objective_of_a_user() -> Iterator[None]:
    from opd_verl.objective_hooks import OBJECTIVE_HOOKS, register_objective

    register_objective(OBJECTIVE_OF_A_USER)(lambda inputs: inputs.log_p)
    yield
    OBJECTIVE_HOOKS.pop(OBJECTIVE_OF_A_USER)


MIXED = ["opd.mix.task=1", "actor_rollout_ref.rollout.n=4"]
WORKS: dict[str, list[str]] = {
    **{f"support {name}": [f"opd.objective.support={name}", "opd.objective.k=16", SILENT] for name in TOPK_SUPPORTS},
    **{
        f"paper_compat on {name} by {weights}": [
            *(f"opd.objective.support={name}", "opd.objective.k=16", "opd.objective.paper_compat=true", SILENT),
            f"opd.objective.paper_compat_weights={weights}",
        ]
        for name, weights in zip(TOPK_SUPPORTS, ["student", "teacher", "uniform", "student", "teacher"], strict=True)
    },
    **{
        f"jsd, tail {tail}": [
            *TOPK,
            *("opd.objective.divergence=jsd", "opd.objective.beta=0.1", f"opd.objective.tail={tail}"),
        ]
        for tail in ("renorm", "none", "bucket", "generalised", "renorm_teacher")
    },
    "whole vocabulary": ["opd.objective.support=full", SILENT],
    "whole vocabulary, forward": ["opd.objective.support=full", "opd.objective.divergence=forward", SILENT],
    "sampled with k for later": ["opd.objective.k=16"],
    "beta that nobody reads": ["opd.objective.beta=2.0"],
    "objective of the user's": [*TOPK, f"opd.objective.name={OBJECTIVE_OF_A_USER}", "opd.rewards=[]"],
    **{f"forward KL {name}": [f"{PLACEMENT}={name}"] for name in ("none", "gated", "full", "random")},
    "forward KL, any tau": [f"{PLACEMENT}=gated", "opd.forward_kl.tau=-inf", "opd.forward_kl.k=96"],
    "forward KL on a support": [*TOPK, f"{PLACEMENT}=gated", "opd.forward_kl.k=4"],
    "forward KL with a k that nobody reads": ["opd.forward_kl.k=1000"],
    "all masks": [
        "opd.tokens.masks=[top_student_entropy,top_teacher_entropy,top_either_entropy,drop_q3,drop_destructive_q3,"
        "high_divergence,depth_window]"
    ],
    "all weights": ["opd.tokens.weights=[correctness,depth_decay]", "opd.tokens.incorrect=0"],
    **{f"truncated {name}": [f"opd.tokens.truncated={name}"] for name in ("keep", "mask", "mask_tail", "drop")},
    "advantage": ["opd.advantage.clamp=5", "opd.advantage.gamma=1", "opd.advantage.shaping_alpha=0.1"],
    "mixture": MIXED,
    "the task alone": [*MIXED, "opd.mix.opd=0"],
    "mixture with rloo": [*MIXED, "opd.mix.estimator=rloo"],
    "exact objective in a mixture": [*MIXED, *TOPK, f"{LOSS_MODE}=opd"],
    "an estimator that nobody asks": ["opd.mix.estimator=nope"],
    "verl's own policy loss": [f"{LOSS_MODE}=vanilla"],
    "the plain path": ["opd.fused=false"],
    "rows by hand": ["opd.fused_rows=7"],
    "softcapped student on the plain path": [f"{STUDENT}=@softcapped", "opd.fused=false"],
    "softcapped teacher": [f"{TEACHER}=@softcapped"],
    "a scale of 1": [f"{STUDENT}=@not_scaled"],
    "ulysses on the plain path": [f"{ACTOR}.{SP}=2", f"{ACTOR}.fsdp_config.{SP}=2", "opd.fused=false"],
}


@pytest.mark.parametrize("case", WORKS)
def test_an_objective_that_can_work_is_accepted(files: Files, objective_of_a_user: None, case: str) -> None:
    preflight(files.config(*WORKS[case]))


@pytest.mark.parametrize("recipe", OPD_RECIPES)
@pytest.mark.parametrize("changes", [[], ["opd.tokens.masks=[drop_q3]", "opd.tokens.truncated=drop"]], ids=str)
def test_every_recipe_is_accepted(files: Files, recipe: str, changes: list[str]) -> None:
    preflight(files.config(*changes, recipe=recipe))


@pytest.mark.parametrize("recipe", ["opd", "opd_topk"])
@pytest.mark.parametrize(
    "changes",
    [
        [],
        [f"{STUDENT}=@student_120", f"{TEACHER}=@teacher_104"],
        [f"{STUDENT}=@teacher_104", f"{TEACHER}=@student_120"],
        [f"{TEACHER}=@no_tokenizer", "opd.teacher.tokenizer_path=@student"],
        ["opd.objective.k=96"],
        ["data.max_response_length=112"],
        ["actor_rollout_ref.rollout.temperature=0.8"],
        ["algorithm.rollout_correction=null"],
        ["opd.rewards=[reverse_kl,reverse_kl_baseline]", "opd.objective.k=4"],
    ],
    ids=lambda changes: " ".join(changes) or "as the recipe has it",
)
def test_a_run_that_can_work_is_accepted(files: Files, recipe: str, changes: list[str]) -> None:
    preflight(files.config(*changes, recipe=recipe))


def test_without_a_recipe_the_section_is_missed() -> None:
    with pytest.raises(ConfigError, match="start from a recipe: `recipe=opd`"):
        preflight(compose_ppo())


def test_hydra_swallows_exceptions_of_callbacks_but_not_ours(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: DictConfig, opd: OpdConfig) -> None:
        raise KeyError("a bug of ours")

    config = compose_ppo(*files.overrides(), with_hydra=True)
    callbacks = Callbacks(OmegaConf.masked_copy(config, ["hydra"]))
    assert [type(callback) for callback in callbacks.callbacks].count(Preflight) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Hydra makes of an exception
        callbacks.on_job_start(config, task_function=lambda config: None)
        monkeypatch.setattr(module.recipe, "CHECKS", (broken,))
        with pytest.raises(SystemExit) as ended:
            callbacks.on_job_start(config, task_function=lambda config: None)
    assert "a bug of ours" in str(ended.value.code), "a string code prints and exits with 1"


def test_an_error_that_nobody_foresaw_ends_the_run_and_keeps_its_trace(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_hooks.py").write_text("raise RuntimeError('planted in broken_hooks')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match="planted in broken_hooks"):
        Preflight().on_job_start(files.config("opd.plugins=[broken_hooks]"))
    assert 'broken_hooks.py", line 1' in capsys.readouterr().err


def test_a_users_plugin_registers_its_hook_before_the_hooks_are_checked(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hooks_of_a_test_user"
    code = f"from opd_verl.hooks import register_reward\nregister_reward('{name}')(lambda inputs: inputs.log_q)\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    preflight(files.config(f"opd.plugins=[{name}]", f"opd.rewards=[{name}]"))
    sys.modules.pop(name)
    from opd_verl.hooks import REWARD_HOOKS

    REWARD_HOOKS.pop(name)


def test_a_hub_name_without_a_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from opd_verl.checks import models

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match=r"opd\.teacher\.path='models/typo'.*cannot reach 127\.0\.0\.1"):
        models.load_config("opd.teacher.path", "models/typo", trust_remote_code=False)
