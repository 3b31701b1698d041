"""Every cluster with every recipe: what it composes to, that it passes all checks, and that nothing is left over."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig
from preflight_harness import save_config
from recipes_harness import CONFIGS, RECIPES, compose_ppo, compose_sft

from opd_verl.checks.batch import check_mini_batch, check_token_budget
from opd_verl.checks.preflight import preflight
from opd_verl.checks.recipe import check_cluster
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import every_teacher, parse_opd
from opd_verl.teacher.placement import placeable

CLUSTERS = sorted(path.stem for path in (CONFIGS / "cluster").glob("*.yaml"))
SHAPES = {name: tuple(map(int, name.split("x"))) for name in CLUSTERS if name != "local_cpu"}
LONG = 65536


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for models and data that fit every recipe as it is; the models have a config and a tokenizer alone."""
    root = tmp_path_factory.mktemp("inputs")
    for name in ("student", "teacher"):
        save_config(root / name, max_position_embeddings=LONG)
    row = {
        "prompt": [{"role": "user", "content": "?"}],
        "data_source": "d",
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "response_ids": [[3, 4]],
        "extra_info": {"correct": ["1"]},
    }
    pq.write_table(pa.Table.from_pylist([row]), root / "prompts.parquet")
    return [
        f"actor_rollout_ref.model.path={root}/student",
        f"data.train_files={root}/prompts.parquet",
        f"data.val_files={root}/prompts.parquet",
    ]


def composed(recipe: str, cluster: str, *overrides: str) -> DictConfig:
    return compose_ppo(f"recipe={recipe}", f"cluster={cluster}", *overrides)


def teacher_of(recipe: str, inputs: list[str]) -> list[str]:
    """The teacher's key, where the recipe has one and does not name it itself."""
    folder = Path(inputs[0].partition("=")[2]).parent / "teacher"
    return [] if recipe.startswith("grpo") or recipe == "opsd" else [f"opd.teacher.path={folder}"]


def test_the_clusters_are_those_of_the_readme() -> None:
    assert set(CLUSTERS) == {"local_cpu", "1x1", "1x8", "2x8", "4x8", "16x8"}
    assert {path.stem for path in (CONFIGS / "sft/cluster").glob("*.yaml")} == set(CLUSTERS)


PAIRS = [(recipe, cluster, ()) for recipe in RECIPES for cluster in CLUSTERS]
NAMED_ENGINE = [(recipe, CLUSTERS[index % len(CLUSTERS)], ("model_engine=dp",)) for index, recipe in enumerate(RECIPES)]
"""verl's choice of engine, which is dp anyway, written out: every recipe and every cluster once."""


@pytest.mark.parametrize(("recipe", "cluster", "engine"), [*PAIRS, *NAMED_ENGINE])
def test_every_pair_composes_and_passes_every_check(
    recipe: str, cluster: str, engine: tuple[str, ...], inputs: list[str]
) -> None:
    config = composed(recipe, cluster, *inputs, *teacher_of(recipe, inputs), *engine)
    if "opd" in config:
        preflight(config, skip=(check_cluster,) if cluster != "local_cpu" else ())
    else:
        check_mini_batch(config)
        check_token_budget(config)


@pytest.mark.parametrize("cluster", SHAPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_trainer_and_teacher_share_out_all_devices(recipe: str, cluster: str, inputs: list[str]) -> None:
    nodes, devices = SHAPES[cluster]
    config = composed(recipe, cluster, *inputs, *teacher_of(recipe, inputs))
    assert (config.cluster.nnodes, config.cluster.n_gpus_per_node) == (nodes, devices)
    pools = [(config.trainer.n_gpus_per_node, config.trainer.nnodes)]
    if "opd" in config:
        own = [item for item in every_teacher(parse_opd(config)).values() if not item.colocate]
        pools += [(item.n_gpus_per_node, item.nnodes) for item in own]
    assert sum(size * count for size, count in pools) == nodes * devices
    assert placeable([devices] * nodes, *pools)


@pytest.mark.parametrize("recipe", RECIPES)
def test_several_nodes_shard_within_a_node(recipe: str) -> None:
    for cluster, (nodes, devices) in SHAPES.items():
        size = composed(recipe, cluster).actor_rollout_ref.actor.fsdp_config.fsdp_size
        assert size == (devices if nodes > 1 else -1)


def test_a_recipe_without_a_teacher_keeps_all_devices_and_gets_no_section() -> None:
    grpo, opd = composed("grpo", "16x8"), composed("opd", "16x8")
    assert "opd" not in grpo
    assert (grpo.trainer.nnodes, opd.trainer.nnodes, opd.opd.teacher.nnodes, opd.opd.teacher.shards) == (16, 4, 12, 4)


def test_a_cluster_alone_is_the_whole_of_it() -> None:
    assert compose_ppo("cluster=16x8").trainer.nnodes == 16


def test_the_command_line_beats_the_cluster() -> None:
    halves = ["opd.teacher.colocate=false", "opd.teacher.n_gpus_per_node=4", "trainer.n_gpus_per_node=4"]
    config = composed("opd", "1x8", *halves)
    assert (config.trainer.n_gpus_per_node, config.opd.teacher.n_gpus_per_node) == (4, 4)
    assert config.opd.teacher.colocate is False


def test_without_a_cluster_the_teacher_has_one_device_of_its_own() -> None:
    teacher = compose_ppo("recipe=opd").opd.teacher
    assert (teacher.nnodes, teacher.n_gpus_per_node, teacher.shards, teacher.colocate) == (1, 1, 1, False)


@pytest.mark.parametrize("cluster", SHAPES)
def test_the_cold_start_runs_on_one_node_of_it(cluster: str) -> None:
    config = compose_sft("recipe=cold_start", f"cluster={cluster}")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (1, SHAPES[cluster][1])


@pytest.mark.parametrize(("prompts", "remedy"), [(30, "ppo_mini_batch_size=32"), (7, "ppo_mini_batch_size=8")])
def test_a_mini_batch_that_the_ranks_cannot_share_is_refused(prompts: int, remedy: str) -> None:
    config = composed(
        "grpo", "1x8", f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}", "actor_rollout_ref.rollout.n=1"
    )
    with pytest.raises(ConfigError, match=remedy):
        check_mini_batch(config)


def test_a_budget_below_one_sequence_is_refused() -> None:
    config = composed("opd", "1x1", "data.max_response_length=8192")
    with pytest.raises(ConfigError, match="ppo_max_token_len_per_gpu=9216"):
        check_token_budget(config)


def test_a_job_on_a_running_cluster_does_not_tell_ray_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = composed("opd", "local_cpu").ray_kwargs.ray_init
    assert (own.address, own.num_cpus, own.num_gpus) == ("local", 64, 4)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert (own.address, own.num_cpus, own.num_gpus) == (None, None, None)
