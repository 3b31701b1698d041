"""The pipeline around its trainings: stages, command lines, what is run again and what is not, and the table."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from matplotlib import image
from omegaconf import OmegaConf
from places import PACKAGE
from rich.console import Console
from tiny_models import save_tiny_qwen3

from opd_verl.config.errors import ConfigError
from opd_verl.pipeline import run as running
from opd_verl.pipeline.commands import SEEDED, StageInputs, command, environment, outputs, settings
from opd_verl.pipeline.compare import StageRow, as_json, eval_config, models_of, recovered
from opd_verl.pipeline.config import PipelineConfig, StageConfig, parse_pipeline, root, schema
from opd_verl.pipeline.fingerprint import stage_fingerprint
from opd_verl.pipeline.folders import FinishedStage, StageFolder
from opd_verl.pipeline.prepare import PreparedStage, prepare_stages
from opd_verl.pipeline.report import draw, markdown, show, write_report
from opd_verl.tracking.checkpoints import mend_tracker, tracker

MACHINE = ("cluster=local_cpu", 'overrides=["data.max_prompt_length=16","data.max_response_length=64"]')
PIPELINES = sorted((PACKAGE.parent / "hydra_configs" / "pipelines" / "pipeline").glob("*.yaml"))


def composed(*overrides: str) -> Any:
    """The pipeline's config as its command would see it."""
    ConfigStore.instance().store("pipeline_schema", schema())
    with initialize_config_module("hydra_configs.pipelines", version_base=None):
        return compose("pipeline", overrides=list(overrides))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name two tiny models and a data file."""
    folder = tmp_path_factory.mktemp("start")
    save_tiny_qwen3(folder / "student", seed=0)
    save_tiny_qwen3(folder / "teacher", seed=1)
    answer = {"style": "rule", "ground_truth": "w1"}
    rows = [{"data_source": "t", "prompt": [{"role": "user", "content": "w2"}], "reward_model": answer}]
    pd.DataFrame(rows).to_parquet(folder / "prompts.parquet")
    models = [f"models.{role}={folder / role}" for role in ("student", "teacher")]
    return [*models, f"data.train={folder / 'prompts.parquet'}", f"data.val={folder / 'prompts.parquet'}", *MACHINE]


def pipeline(start: list[str], out: Path, *changes: str, name: str = "grpo_then_opd") -> PipelineConfig:
    return parse_pipeline(composed(f"pipeline={name}", *start, f"out={out}", *changes))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_plans(path: Path, start: list[str], tmp_path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# @package _global_\n# python -m opd_verl.pipeline pipeline=") and path.stem in text
    short = 'stages.{}.overrides=["data.max_length=64","data.max_token_len_per_gpu=64"]'
    changes = [short.format("cold_start")] if "cold_start" in path.stem else []
    stages = prepare_stages(pipeline(start, tmp_path, *changes, name=path.stem))
    assert [stage.name for stage in stages] == list(pipeline(start, tmp_path, name=path.stem).stages)
    assert len({stage.fingerprint for stage in stages}) == len(stages)


def test_stages_are_changed_and_added_on_the_command_line(start: list[str], tmp_path: Path) -> None:
    changes = ("stages.distil.recipe=eopd", "stages.distil.steps=7", "stages.again={recipe: grpo, student: distil}")
    actual = pipeline(start, tmp_path, *changes)
    assert list(actual.stages) == ["teacher", "distil", "again"]
    assert (actual.stages["distil"].recipe, actual.stages["distil"].steps) == ("eopd", 7)
    assert root(actual, "again") == actual.models.student and root(actual, "teacher") == actual.models.teacher
    assert list(pipeline(start, tmp_path, name="grpo_opd_grpo").stages) == ["teacher", "distil", "polish"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.distil.stepz=3", r"stages\.distil\.stepz=3: Key 'stepz' not in 'StageConfig'"),
        ("stages.distil.steps=x", r"stages\.distil\.steps='x'"),
        ("stages.distil.steps=0", r"stages\.distil\.steps=0: must be positive"),
        ("stages.teacher.student=distil", r"stages\.teacher\.student='distil': stage distil does not come before"),
        ("stages.distil.teacher=distil", r"stages\.distil\.teacher='distil': .*one of teacher"),
        ("stages={}", r"stages=\{\}: no stage is given"),
        ("stages={a/b: {recipe: grpo, student: x}}", "a stage's name becomes a folder name"),
        ("stages={a: {recipe: grpo}}", r"missing mandatory value: student"),
    ],
)
def test_a_bad_stage_is_refused_by_name(change: str, message: str, start: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(start, tmp_path, change) if "{" not in change else parse_pipeline(
            OmegaConf.merge(composed("pipeline=grpo_then_opd", *start), {"stages": None}, {"stages": ruled(change)})  # type: ignore[arg-type]
        )


def ruled(change: str) -> Any:
    """The stages of `stages={...}`, in place of the file's."""
    import yaml

    return yaml.safe_load(change.removeprefix("stages="))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.teacher.teacher=${models.teacher}", r"stages\.teacher\.teacher=.*recipe=grpo reads no teacher"),
        ("stages.distil.teacher=null", r"opd\.teacher\.path=None: no teacher is set"),
        ("stages.distil.recipe=cold_start", ""),
        ("stages.distil.teacher=/nowhere", r"stages\.distil\.teacher='/nowhere': no such model folder"),
        ("stages.teacher.student=/nowhere", r"stages\.teacher\.student='/nowhere': no such"),
        ("data.train=/nowhere.parquet", r"data\.train='/nowhere.parquet': no such file"),
        ("overrides=[]", r"lower data\.max_response_length"),
    ],
)
def test_a_stage_that_cannot_work_is_refused_before_the_first_one_runs(
    change: str, message: str, start: list[str], tmp_path: Path
) -> None:
    if not message:
        prepare_stages(pipeline(start, tmp_path, change))  # the teacher samples, verl's SFT trainer trains
        return
    with pytest.raises(ConfigError, match=message):
        prepare_stages(pipeline(start, tmp_path, change))


@pytest.mark.parametrize("change", ["stages.distil.recipe=nope", 'overrides=["actor_rollout_ref.nope=1"]'])
def test_hydra_refuses_what_it_does_not_know(change: str, start: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nope"):
        prepare_stages(pipeline(start, tmp_path, change))


INPUTS = StageInputs("/s t", "/t", "/train.parquet", "/val.parquet")


def test_the_command_lines() -> None:
    config = PipelineConfig(cluster="local_cpu", seed=3, overrides=["a=1"])
    stage = StageConfig(recipe="opd", student="x", steps=5, overrides=["a=2"])
    overrides_made = settings(config, stage, INPUTS, distils=True)
    assert overrides_made[:2] == ["recipe=opd", "cluster=local_cpu"] and overrides_made[-2:] == ["a=1", "a=2"], (
        "the user's come last"
    )
    wanted = {"actor_rollout_ref.model.path='/s t'", "opd.teacher.path='/t'", "opd.seed_rollouts=true", "data.seed=3"}
    assert wanted | {"trainer.total_training_steps=5"} < set(overrides_made)
    grpo = settings(config, replace(stage, recipe="grpo"), replace(INPUTS, teacher=None), distils=False)
    assert set(SEEDED) < set(grpo) and not any("opd.teacher" in item for item in grpo)
    sft = settings(config, replace(stage, recipe="cold_start"), INPUTS, distils=False)
    assert {"model.path='/s t'", "trainer.seed=3", "a=2"} < set(sft) and "a=1" not in sft
    exact = settings(replace(config, deterministic=True), stage, INPUTS, distils=True)
    assert "opd.teacher.early=false" in exact and "opd.teacher.early=true" in overrides_made
    thinking = replace(config, chat_template_kwargs={"enable_thinking": False})
    for recipe in ("opd", "cold_start"):
        overrides_made = settings(thinking, replace(stage, recipe=recipe), INPUTS, distils=recipe == "opd")
        assert "++data.apply_chat_template_kwargs.enable_thinking=false" in overrides_made
    assert command("opd", ["x"], 8)[1:] == ["-m", "verl.trainer.main_ppo", "x"]
    assert command("cold_start", ["x"], 1)[1:] == ["-m", "verl.trainer.sft_trainer", "x"]
    assert "--nproc_per_node=8" in command("cold_start", ["x"], 8)
    assert environment("opd") == {} and environment("cold_start")["WORLD_SIZE"] == "1"


def test_a_stage_goes_on_where_it_was_and_keeps_the_checkpoint_before_the_newest() -> None:
    ppo, sft = (outputs(PipelineConfig(save_freq=4), "n", recipe, Path("/c")) for recipe in ("opd", "cold_start"))
    assert {"trainer.resume_mode=auto", "trainer.save_freq=4", "trainer.default_local_dir='/c'"} < set(ppo) & set(sft)
    assert "trainer.max_actor_ckpt_to_keep=2" in ppo and "trainer.max_ckpt_to_keep=2" in sft
    assert all("hf_model" in item[0] for item in (ppo, sft)), "what the next stage reads"


def fingerprints(start: list[str], out: Path, *changes: str) -> list[str]:
    return [stage.fingerprint for stage in prepare_stages(pipeline(start, out, *changes))]


def test_only_what_a_stage_depends_on_changes_its_name(start: list[str], tmp_path: Path) -> None:
    before = fingerprints(start, tmp_path)
    same = ("save_freq=3", 'stages.distil.overrides=["trainer.logger=[console]","trainer.test_freq=2"]')
    assert before == fingerprints(start, tmp_path / "elsewhere", *same)
    teacher, distil = fingerprints(start, tmp_path, "stages.teacher.steps=2")
    assert teacher != before[0] and distil != before[1], "another teacher"
    teacher, distil = fingerprints(start, tmp_path, 'stages.distil.overrides=["opd.advantage.clamp=5"]')
    assert teacher == before[0] and distil != before[1]
    assert all(fingerprint not in before for fingerprint in fingerprints(start, tmp_path, "seed=1"))


def test_stages_share_the_teachers_responses(start: list[str], tmp_path: Path) -> None:
    short = 'stages.cold_start.overrides=["data.max_length=64","data.max_token_len_per_gpu=64"]'
    teacher = "stages.distil.teacher=${models.teacher}"
    changes = (short, "stages.distil.recipe=gkd", "stages.cold_start.teacher=${models.teacher}", teacher)
    _, cold, distil = prepare_stages(pipeline(start, tmp_path, *changes, name="grpo_cold_start_opd"))
    assert cold.responses is not None and distil.responses is not None and cold.responses.file == distil.responses.file
    assert cold.responses.train_file.name == "sft.parquet" and distil.responses.train_file == distil.responses.file
    _, only_correct, same = prepare_stages(
        pipeline(start, tmp_path, *changes, "rollouts.only_correct=true", name="grpo_cold_start_opd")
    )
    assert only_correct.fingerprint != cold.fingerprint and only_correct.responses is not None
    assert only_correct.responses.file == cold.responses.file, "only what is made of them differs"
    assert same.responses == replace(distil.responses, only_correct=True)
    _, _, hotter = prepare_stages(
        pipeline(start, tmp_path, *changes, "rollouts.temperature=0.7", name="grpo_cold_start_opd")
    )
    assert hotter.responses is not None and hotter.responses.file != distil.responses.file


def test_files_count_by_their_content(start: list[str], tmp_path: Path) -> None:
    before = fingerprints(start, tmp_path)
    train = Path(start[2].removeprefix("data.train="))
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(train.read_bytes())
    assert fingerprints(start, tmp_path, f"data.train={copy}") == before
    frame = pd.read_parquet(copy)
    pd.concat([frame, frame]).to_parquet(copy)
    assert not set(fingerprints(start, tmp_path, f"data.train={copy}")) & set(before)


def test_keys_that_change_no_number_are_left_out() -> None:
    config = OmegaConf.create({"trainer": {"logger": ["console"], "nnodes": 1}, "ray_kwargs": {"x": 1}})
    name = stage_fingerprint(config, {"student": "a"})
    assert name == stage_fingerprint(OmegaConf.create({"trainer": {"nnodes": 1}}), {"student": "a"})
    assert name != stage_fingerprint(config, {"student": "b"})
    assert name != stage_fingerprint(OmegaConf.create({"trainer": {"nnodes": 2}}), {"student": "a"})


def trained(folder: StageFolder, steps: int) -> StageFolder:
    """A stage's folder as verl's trainer leaves it."""
    model = folder.model(steps)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (folder.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(steps))
    return folder


@pytest.mark.parametrize(("recipe", "inner"), [("opd", "actor/huggingface"), ("cold_start", "huggingface")])
def test_a_finished_stage_says_where_its_model_is(recipe: str, inner: str, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "a", recipe)
    assert folder.finished() is None and folder.latest_step() == 0
    with pytest.raises(SystemExit, match="left no model"):
        folder.finish(1.0)
    done = trained(folder, 7).finish(90.0)
    assert done == folder.finished() == FinishedStage(str(folder.checkpoints / "global_step_7" / inner), 7, 90.0)


def test_a_checkpoint_that_a_kill_left_without_its_name_is_found(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "a", "opd")
    mend_tracker(folder.checkpoints)
    assert folder.latest_step() == 0
    for steps in (8, 10):
        mend_tracker(trained(folder, steps).checkpoints)
    assert folder.latest_step() == 10
    tracker(folder.checkpoints).write_text("")
    mend_tracker(folder.checkpoints)
    assert folder.latest_step() == 10


def test_the_steps_of_several_attempts_are_one_row_each(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, "opd")
    for attempt, numbers in enumerate([(1, 2, 3), (3, 4)]):
        lines = [json.dumps({"step": step, "data": {"x": attempt}}) + "\n" for step in numbers]
        folder.next_attempt().write_text("".join(lines) + '{"step": 9, "da')
    assert [(step["step"], step["x"]) for step in folder.steps()] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def fake_stage(name: str, folder: Path, stage: StageConfig) -> PreparedStage:
    return PreparedStage(name, stage, True, "f" * 10, StageFolder(folder, stage.recipe), None, 1)


def test_what_is_finished_is_not_run_again_and_hands_its_model_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    groups: set[str] = set()

    def train(line: list[str], log: Path, metrics: Path, label: str, done: int, total: int, env: Any, *_: Any) -> None:
        started.append(line)
        groups.add(env["WANDB_RUN_GROUP"])
        trained(stages[len(started) - 1].folder, 5)

    monkeypatch.setattr(running, "run_child", train)
    config = PipelineConfig(out=str(tmp_path / "mine-seed1"), stages={})
    first = StageConfig(recipe="grpo", student="/m", steps=5)
    stages = [
        fake_stage("one", tmp_path / "stages" / "one", first),
        fake_stage("two", tmp_path / "stages" / "two", StageConfig(recipe="opd", student="/s", teacher="one")),
    ]
    config.data.train = config.data.val = "/d.parquet"
    actual = running.run_stages(config, stages)
    assert len(started) == 2 and f"opd.teacher.path='{actual['one'].model}'" in started[1]
    assert groups == {"mine"}
    assert (tmp_path / "mine-seed1" / "models" / "two").resolve() == Path(actual["two"].model)
    assert running.run_stages(config, stages) == actual and len(started) == 2


def test_two_pipelines_do_not_share_a_folder(tmp_path: Path) -> None:
    with running.alone(tmp_path), pytest.raises(ConfigError, match="another pipeline runs"), running.alone(tmp_path):
        pass
    with running.alone(tmp_path):
        pass


def test_wall_time_adds_up_over_attempts(tmp_path: Path) -> None:
    for _ in range(2):
        watch = running.Stopwatch(tmp_path / "seconds.json")
        with watch.running():
            time.sleep(0.05)
    assert 0.1 <= watch.total < 5.0


def row(model: str, accuracy: float, **changes: Any) -> StageRow:
    base = StageRow(
        model,
        "b",
        "",
        "",
        "",
        0,
        0.0,
        (accuracy, accuracy - 0.1, accuracy + 0.1),
        (0.5, 0.4, 0.6),
        9.0,
        0.0,
        None,
        None,
    )
    return replace(base, **changes)


ROWS = [
    row("models.student", 0.2),
    row("teacher", 0.8, recipe="grpo", student="models.teacher", steps=3, minutes=1.0),
    row("distil", 0.5, recipe="opd", student="models.student", teacher="teacher", steps=4, minutes=2.0,
        reverse_kl=(0.5, 0.25)),
]  # fmt: skip


def test_the_gap_is_that_between_a_stages_own_student_and_teacher() -> None:
    accuracy = {(item.benchmark, item.model): item.accuracy[0] for item in ROWS}
    assert [recovered(item, accuracy) for item in ROWS[:2]] == [None, None]
    assert recovered(ROWS[2], accuracy) == pytest.approx(0.5)


def test_the_table_the_picture_and_the_json(tmp_path: Path) -> None:
    rows = [*ROWS[:2], replace(ROWS[2], gap_recovery=0.5)]
    stages = [fake_stage("distil", tmp_path / "distil", StageConfig(recipe="opd", student="s", teacher="t"))]
    stages[0].folder.root.mkdir()
    step = {"step": 1, "data": {"critic/score/mean": 0.3, "opd/reverse_kl": 0.5}}
    stages[0].folder.next_attempt().write_text(json.dumps(step) + "\n")
    write_report(rows, stages, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| b | distil | opd | models.student | teacher | 4 | 2.0 | 50.0 [40.0, 60.0] |" in table
    assert "0.500 -> 0.250 | 50.0% |" in table and markdown(rows) == table
    assert json.loads((tmp_path / "table.json").read_text()) == json.loads(json.dumps(as_json(rows)))
    assert "minutes" not in (tmp_path / "table.json").read_text(), "two runs give the same file"
    assert image.imread(tmp_path / "stages.png").std() > 0.05
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(rows, console)
    shown = console.export_text()
    assert all(part in shown for part in ("50.0 ± 10.0", "0.50 -> 0.25", "50.0%", "recovery")) and "…" not in shown
    draw(rows[:1], [], tmp_path / "without curves.png")


def test_the_evaluation_compares_what_the_stages_read_and_made(start: list[str], tmp_path: Path) -> None:
    config = pipeline(start, tmp_path, 'eval.overrides=["n=2","preset=greedy","temperature=0.5"]')
    stages = prepare_stages(config)
    models = models_of(config, stages, {"teacher": FinishedStage("/a", 1, 1.0), "distil": FinishedStage("/b", 1, 1.0)})
    assert list(models) == ["models.student", "models.teacher", "teacher", "distil"] and models["distil"] == "/b"
    evaluation = eval_config(config, models)
    assert (evaluation.n, evaluation.temperature, evaluation.preset) == (2, 0.5, "greedy")
    assert evaluation.suffix == "", "the stages were trained on the files' prompts"
    thinking = replace(config, chat_template_kwargs={"enable_thinking": False})
    assert eval_config(thinking, models).chat_template_kwargs == {"enable_thinking": False}
    assert evaluation.benchmarks == [config.data.val] and evaluation.out == str(tmp_path / "eval")
    only_opd = pipeline(start, tmp_path, "stages.distil.teacher=${models.teacher}", "~stages.teacher")
    assert list(models_of(only_opd, prepare_stages(only_opd), {})) == ["models.student", "models.teacher"]
    config.eval.overrides = ["nope=1"]
    with pytest.raises(SystemExit, match="nope"):
        eval_config(config, models)
