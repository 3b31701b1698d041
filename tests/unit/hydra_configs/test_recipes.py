"""Recipes and clusters on verl's own main: what they compose to, and that nothing changes where none is named."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import verl  # noqa: F401  (loads the plugin, which registers the slots `recipe` and `cluster` with Hydra)
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from recipes_harness import (
    CONFIGS,
    OPD_RECIPES,
    RECIPES,
    compose_in_full,
    compose_ppo,
    compose_sft,
)

from opd_verl.config.hydra_plugin import PRIMARY_CONFIGS, SLOTS
from opd_verl.config.opd import OpdConfig, parse_opd

FILES = sorted(file for slot in SLOTS for file in (CONFIGS / slot).glob("*.yaml"))
SFT_FILES = sorted((CONFIGS / "sft").glob("*/*.yaml"))
PAPER = re.compile(r"(EOPD|Capacity|Rethinking|Unmasking)[^.]*?(table|section|eq\.) ?\w", re.DOTALL)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, raw value) of everything in a config."""
    raw = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    if isinstance(raw, dict) and raw:
        for key, value in raw.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, raw


def header(path: Path) -> str:
    """The comment that opens a file."""
    lines = path.read_text().splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def documented_command(path: Path) -> list[str]:
    """The overrides of the command in a file's header, less the places left open with `...`."""
    actual = re.search(r"^python -m verl\.trainer\.main_ppo (.*)$", header(path), re.MULTILINE)
    assert actual, f"{path.name}: the header has no `python -m verl.trainer.main_ppo` command"
    return [word for word in shlex.split(actual[1]) if word != "..."]


def keys_of(cls: Any, path: str = "") -> set[str]:
    """Dotted keys of a dataclass of dataclasses."""
    collected: set[str] = set()
    for item in fields(cls):
        key = f"{path}{item.name}"
        collected |= keys_of(item.type, f"{key}.") if is_dataclass(item.type) else {key}
    return collected


def test_the_recipes_are_there() -> None:
    opd = {"eopd", "gkd", "kd", "opd", "opd_full", "opd_grpo", "opd_topk", "opsd"}
    assert set(RECIPES) == opd | {"grpo", "grpo_capacity"} and set(OPD_RECIPES) == opd
    clusters = {path.stem for path in (CONFIGS / "cluster").glob("*.yaml")}
    assert {path.stem for path in SFT_FILES} == clusters | {"cold_start"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_into_the_root(name: str) -> None:
    config = compose_ppo(f"recipe={name}")
    assert "recipe" not in config and "cluster" not in config, "without `# @package _global_` nothing would apply"
    assert config.trainer.experiment_name == name and config.trainer.project_name == "opd_verl"
    assert config.critic.enable is False, "verl starts a critic, or warns about it, unless the recipe says no"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_file_opens_with_its_package_and_a_command_that_composes(path: Path) -> None:
    assert path.read_text().splitlines()[0] == "# @package _global_"
    overrides = documented_command(path)
    assert f"{path.parent.name}={path.stem}" in overrides
    assert compose_ppo(*overrides).trainer.project_name == "opd_verl"


@pytest.mark.parametrize("path", SFT_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_recipes_of_the_sft_trainer_compose_into_its_config(path: Path) -> None:
    assert path.read_text().splitlines()[0] == "# @package _global_"
    line = next(line for line in header(path).splitlines() if "verl.trainer.sft_trainer" in line)
    overrides = [word for word in line.split("sft_trainer ")[1].split() if word != "..."]
    assert f"{path.parent.name}={path.stem}" in overrides
    config = compose_sft(*overrides)
    assert config.trainer.project_name == "opd_verl" and config.engine.strategy == "fsdp2"
    assert config.trainer.device == ("cpu" if path.stem == "local_cpu" else "cuda")


def test_cold_start_is_rethinkings() -> None:
    config = compose_sft("recipe=cold_start")
    assert config.data.max_length == 14336 == config.data.max_token_len_per_gpu and config.trainer.total_epochs == 1
    assert config.model.lora_rank == 0, "full-parameter"
    assert PAPER.search(header(CONFIGS / "sft" / "recipe" / "cold_start.yaml"))


def test_each_trainer_has_its_own_recipes() -> None:
    with pytest.raises(MissingConfigException, match="recipe/cold_start"):
        compose_ppo("recipe=cold_start")
    with pytest.raises(MissingConfigException, match=r"recipe/opd'(.|\n)*cold_start"):
        compose_sft("recipe=opd")
    assert compose_ppo("recipe=opd").trainer.experiment_name == "opd", "after the other trainer's config was read"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_the_paper_setting_it_follows(name: str) -> None:
    assert PAPER.search(header(CONFIGS / "recipe" / f"{name}.yaml"))


def test_an_unknown_recipe_is_refused_with_the_list_of_recipes() -> None:
    with pytest.raises(MissingConfigException, match="recipe/nope") as refused:
        compose_in_full("ppo_trainer", "recipe=nope")
    assert all(re.search(rf"^\s+{name}$", str(refused.value), re.MULTILINE) for name in RECIPES)


@pytest.mark.parametrize("name", ["opd_topk", "grpo"])
def test_the_command_line_beats_the_recipe_on_either_side_of_it(name: str) -> None:
    override = "actor_rollout_ref.actor.optim.lr=0.125"
    for overrides in ([override, f"recipe={name}"], [f"recipe={name}", override]):
        assert compose_in_full("ppo_trainer", *overrides).actor_rollout_ref.actor.optim.lr == 0.125


LR, OBJECTIVE = "actor_rollout_ref.actor.optim.lr", "opd.objective"
QUICKLY_COMPOSED = [
    ["recipe=opd"],
    ["recipe=opd", f"{LR}=1e-4", f"{LR}=1e-5", "opd.teacher.path=/models/teacher"],
    [f"{LR}=1e-4", "recipe=opd_topk", f"{OBJECTIVE}.k=4", "cluster=2x8"],
    ["cluster=local_cpu", "recipe=gkd", f"{OBJECTIVE}.support=full", f"~{OBJECTIVE}.beta"],
    ["recipe=opd", "+opd.teachers={a: {path: x, values: [s/0]}}", "+opd.nope=1", "++opd.seed=3", "++opd.other=3"],
    ["recipe=opd", "teacher=vllm", "opd.teacher.engine=scorer", "opd.rewards=[reverse_kl,other]"],
    ["recipe=grpo", "model_engine=megatron", "algorithm.gamma='${algorithm.lam}'"],
    ["trainer.nnodes=2", "trainer.logger=[console]", "trainer.experiment_name='a b=c'"],
    ["recipe=opsd", "opd.context={name: 3c, max_tokens: 7}", "data.train_files=null"],
]


@pytest.mark.parametrize("overrides", QUICKLY_COMPOSED, ids=" ".join)
def test_the_tests_own_quick_composing_is_hydras(overrides: list[str]) -> None:
    quick, full = compose_ppo(*overrides), compose_in_full("ppo_trainer", *overrides)
    assert OmegaConf.to_yaml(quick) == OmegaConf.to_yaml(full), "keys in the same order too"
    assert quick == full and OmegaConf.is_struct(quick) is OmegaConf.is_struct(full) is True


def test_quick_composing_of_the_sft_config_is_hydras() -> None:
    overrides = ["optim.lr=1e-4", "recipe=cold_start", "+new.key=1"]
    assert compose_sft(*overrides) == compose_in_full("sft_trainer_engine", *overrides)


@pytest.mark.parametrize(
    "override", ["opd.nope=1", "~opd.nope", "+opd.fused=true", "opd.objective.k.l=1", "recipe=nope"]
)
def test_quick_composing_refuses_what_hydra_refuses(override: str) -> None:
    messages = []
    for compose in (compose_ppo, partial(compose_in_full, "ppo_trainer")):
        with pytest.raises(HydraException) as refused:
            compose("recipe=opd", override) if "recipe" not in override else compose(override)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", RECIPES)
def test_a_cluster_adds_to_a_recipe_in_either_order(name: str) -> None:
    config = compose_ppo(f"recipe={name}", "cluster=local_cpu")
    assert config == compose_ppo("cluster=local_cpu", f"recipe={name}")
    assert (compose_ppo().trainer.device, config.trainer.device) == ("cuda", "cpu")
    assert config.trainer.experiment_name == name
    assert config.actor_rollout_ref.actor.strategy == "fsdp2"
    if "opd" in config:
        assert config.opd.teacher.dtype == config.actor_rollout_ref.rollout.dtype == "float32"


@pytest.mark.parametrize("config_name", PRIMARY_CONFIGS)
def test_the_slots_come_last_and_each_after_what_it_overrides(config_name: str) -> None:
    from opd_verl.config.hydra_plugin import VERL_CONFIGS, RecipeSlot

    loaded: Any = RecipeSlot("test", f"{RecipeSlot.scheme()}://{VERL_CONFIGS}").load_config(config_name).config
    assert list(loaded.defaults)[-3:] == [{"recipe": None}, {"cluster": None}, {"teacher": None}]


def test_recipe_opd_composes_with_another_model_engine() -> None:
    config = compose_ppo("recipe=opd", "model_engine=megatron")
    assert config.actor_rollout_ref.actor._target_.endswith("McoreActorConfig")
    assert config.algorithm.adv_estimator == "opd"


ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
EOPD_TABLE_8 = {
    "data.train_batch_size": 128,
    "data.max_response_length": 4096,
    f"{ACTOR}.ppo_mini_batch_size": 32,
    f"{ACTOR}.optim.lr": 3e-6,
    f"{ACTOR}.optim.lr_scheduler_type": "cosine",
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1.0,
}
RETHINKING_TABLE_2 = {
    "data.train_batch_size": 64,
    "data.max_prompt_length": 1024,
    "data.max_response_length": 7168,
    f"{ACTOR}.ppo_mini_batch_size": 64,
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ROLLOUT}.n": 4,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1.0,
    "opd.objective.k": 16,
}
CAPACITY_TABLE_7 = {
    "data.train_batch_size": 32,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 6144,
    f"{ACTOR}.ppo_mini_batch_size": 32,
    f"{ACTOR}.optim.lr": 1e-5,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.05,
    f"{ROLLOUT}.n": 1,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1.0,
}
SAMPLED = {
    "opd.objective.support": "sampled",
    "opd.objective.name": None,
    "opd.rewards": ["reverse_kl"],
    "opd.mix.opd": 1.0,
    f"{ACTOR}.policy_loss.loss_mode": "opd",
}
EXACT = {
    "opd.objective.divergence": "reverse",
    "opd.objective.tail": "renorm",
    "opd.objective.paper_compat": False,
    "opd.forward_kl.placement": "none",
    "opd.mix.opd": 1.0,
    "opd.mix.task": 0.0,
    f"{ACTOR}.policy_loss.loss_mode": "opd_none",
}
NOTHING_ELSE = {"opd.forward_kl.placement": "none", "opd.mix.task": 0.0}
EOPD_TERM = {"placement": "gated", "tau": 0.8, "k": 16, "coefficient": 1.0}
VETTED = {
    "opd": EOPD_TABLE_8 | SAMPLED | NOTHING_ELSE | {f"{ROLLOUT}.n": 1},
    "eopd": EOPD_TABLE_8
    | SAMPLED
    | {f"opd.forward_kl.{name}": value for name, value in EOPD_TERM.items()}
    | {f"{ROLLOUT}.n": 1, "opd.mix.task": 0.0},
    "opd_grpo": EOPD_TABLE_8
    | SAMPLED
    | {f"{ROLLOUT}.n": 8, "opd.mix.task": 1.0, "opd.mix.estimator": "grpo", "opd.forward_kl.placement": "none"},
    "grpo": EOPD_TABLE_8 | {f"{ROLLOUT}.n": 8, "algorithm.adv_estimator": "grpo"},
    "kd": EXACT
    | {
        "data.train_batch_size": 128,
        "data.max_prompt_length": 1024,
        "data.max_response_length": 3072,
        f"{ACTOR}.ppo_mini_batch_size": 128,
        f"{ACTOR}.optim.lr": 1e-5,
        f"{ACTOR}.optim.lr_scheduler_type": "cosine",
        "trainer.total_epochs": 3,
        "opd.objective.support": "teacher_topk",
        "opd.objective.k": 16,
        "opd.objective.divergence": "forward",
        "opd.objective.tail": "renorm_teacher",
        "opd.off_policy.share": 1.0,
        "opd.off_policy.cross_entropy": 1.0,
        "opd.mix.opd": 0.5,
    },
    "gkd": CAPACITY_TABLE_7
    | EXACT
    | {"opd.objective.support": "full", "opd.objective.divergence": "jsd", "opd.objective.beta": 0.5}
    | {"opd.off_policy.share": 0.5, "opd.off_policy.cross_entropy": 0.0},
    "grpo_capacity": {
        "data.train_batch_size": 64,
        "data.max_prompt_length": 1024,
        "data.max_response_length": 6144,
        "algorithm.adv_estimator": "grpo",
        "trainer.total_epochs": 1,
        f"{ACTOR}.optim.lr": 1e-6,
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        f"{ACTOR}.kl_loss_coef": 1e-3,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ROLLOUT}.n": 8,
        f"{ROLLOUT}.temperature": 1.0,
        f"{ROLLOUT}.top_p": 1.0,
    },
    "opsd": EOPD_TABLE_8 | SAMPLED | NOTHING_ELSE | {"opd.context.name": "1c", "opd.teacher.sync_every": 0},
    "opd_topk": RETHINKING_TABLE_2 | EXACT | {"opd.objective.support": "student_topk"},
    "opd_full": CAPACITY_TABLE_7 | EXACT | {"opd.objective.support": "full"},
}


@pytest.mark.parametrize("name", VETTED)
def test_the_defaults_are_the_papers_settings(name: str) -> None:
    config = compose_ppo(f"recipe={name}")
    assert {key: OmegaConf.select(config, key) for key in VETTED[name]} == VETTED[name]


def test_every_recipe_is_vetted() -> None:
    assert set(VETTED) == set(RECIPES)


@pytest.mark.parametrize("name", OPD_RECIPES)
def test_one_rollout_of_full_length_fits_a_micro_batch(name: str) -> None:
    config = compose_ppo(f"recipe={name}")
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    assert config.data.train_batch_size % config.actor_rollout_ref.actor.ppo_mini_batch_size == 0


def test_the_recipes_defaults_are_the_typed_sections_own() -> None:
    """Where recipe=opd and the dataclasses give one key two values, one of them is documented wrongly."""
    typed: Any = OmegaConf.to_container(OmegaConf.structured(OpdConfig), enum_to_str=True)
    ours = dict(leaves(OmegaConf.to_container(compose_ppo("recipe=opd").opd, resolve=True)))
    different = {key for key, value in leaves(typed) if ours[key] != value}
    assert different == {"teacher.path"}, "required: null in the recipe, an empty string in the dataclass"


@pytest.mark.parametrize("name", OPD_RECIPES)
def test_every_opd_recipe_parses(name: str) -> None:
    opd = parse_opd(compose_ppo(f"recipe={name}", "opd.teacher.path=somewhere"))
    assert opd.teacher.path == "somewhere" and opd.fused and not opd.tokens.masks and not opd.tokens.weights


def test_grpo_touches_nothing_of_ours_but_the_reward() -> None:
    config = compose_ppo("recipe=grpo", with_hydra=True)
    assert "opd" not in config and "opd_preflight" not in config.hydra.callbacks
    ours = {key: value for key, value in leaves(compose_ppo("recipe=grpo")) if "opd" in f"{key} {value}"}
    assert ours == {
        "reward.custom_reward_function.path": "pkg://opd_verl.rewards",
        "trainer.project_name": "opd_verl",
    }


@pytest.mark.parametrize("name", OPD_RECIPES)
def test_every_opd_recipe_is_checked_before_it_runs_and_shows_every_key(name: str) -> None:
    config = compose_ppo(f"recipe={name}", with_hydra=True)
    assert config.hydra.callbacks.opd_preflight._target_ == "opd_verl.checks.preflight.Preflight"
    assert {key for key, _ in leaves(compose_ppo(f"recipe={name}").opd)} == keys_of(OpdConfig)
