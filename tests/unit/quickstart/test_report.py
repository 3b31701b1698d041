"""The quickstart around its runs: the report, the run's files and command line, and what a second run may reuse."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib import image
from rich.console import Console

from opd_verl.config.compose import compose_trainer
from opd_verl.config.overrides import hydra_value
from opd_verl.quickstart import __main__ as quickstart
from opd_verl.quickstart import prepare as preparation
from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.models import ModelSize
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import Pupil, check_contract, eval_problems, made_with, prepare, pupils, stop_problems
from opd_verl.quickstart.report import ModelResult, QuickstartResult, draw_curves, print_table, write_json

BEFORE = ModelResult(accuracy=0.125, greedy=0.251, length=32.9, reverse_kl=0.8166, overlap={1: 0.791, 16: 0.685})
AFTER = ModelResult(accuracy=0.754, greedy=0.973, length=33.7, reverse_kl=0.0935, overlap={1: 0.986, 16: 0.792})
TEACHER = ModelResult(accuracy=0.959, greedy=0.998, length=33.8, reverse_kl=0.0, overlap={1: 1.0, 16: 1.0})
RESULT = QuickstartResult("opd_topk", 3, 60, BEFORE, AFTER, TEACHER, seconds=642.0)
NO_GAP = replace(RESULT, teacher=BEFORE)
NASTY = (
    "/a b/(c)", "/x=y,z", "/[a]{b}:c", "/été/日本", "/it's", "/'", "/back\\slash", "/\\'", "/\\\\'", "/end\\",
    '/"q"', "/$HOME", "/~/#%", "/plain",
)  # fmt: skip


def printed(result: QuickstartResult) -> str:
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    print_table(result, console)
    return console.export_text()


def test_the_table_shows_every_number() -> None:
    rows = [line.replace("│", " ").split() for line in printed(RESULT).splitlines()]
    for numbers in (
        ["12.5%", "75.4%", "95.9%"],
        ["25.1%", "97.3%", "99.8%"],
        ["0.8166", "0.0935", "0.0000"],
        ["32.9", "33.7", "33.8"],
        ["0.791", "0.986", "1.000"],
        ["0.685", "0.792", "1.000"],
    ):
        assert any(row[-3:] == numbers for row in rows), numbers
    assert ["gap", "recovery", "rate", "75.4%"] in rows and ["wall", "time", "10.7", "min"] in rows
    assert "recipe=opd_topk, seed 3, 60 steps" in printed(RESULT)


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(RESULT, tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content.pop("gap_recovery") == pytest.approx((0.754 - 0.125) / (0.959 - 0.125))
    for name in ("before", "after", "teacher"):
        content[name]["overlap"] = {int(k): share for k, share in content[name]["overlap"].items()}
        content[name] = ModelResult(**content[name])
    assert QuickstartResult(**content) == RESULT


def test_without_a_gap_everything_is_still_reported(tmp_path: Path) -> None:
    assert NO_GAP.gap_recovery is None and ["gap", "recovery", "rate", "n/a"] in [
        line.replace("│", " ").split() for line in printed(NO_GAP).splitlines()
    ]
    write_json(NO_GAP, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["gap_recovery"] is None
    draw_curves([], NO_GAP, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_the_picture_is_a_png_that_shows_the_curves(tmp_path: Path) -> None:
    steps = [
        {"step": i, "opd/reverse_kl": 1 / i, "critic/score/mean": i / 10, "response_length/mean": 30.0 + i}
        for i in range(1, 9)
    ]
    draw_curves(steps, RESULT, tmp_path / "curves.png")
    draw_curves([], RESULT, tmp_path / "empty.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawn, empty = (image.imread(tmp_path / name) for name in ("curves.png", "empty.png"))
    assert drawn.shape == empty.shape and drawn.shape[0] > 300 and drawn.shape[1] > 1000
    # Blue ink of the curves, in each of the three panels.
    blue = (drawn[..., 2] - drawn[..., 0] > 0.4) & ~(empty[..., 2] - empty[..., 0] > 0.4)
    width = blue.shape[1] // 3
    assert all(blue[:, i * width : (i + 1) * width].sum() > 100 for i in range(3))


@pytest.mark.parametrize("path", NASTY)
def test_hydra_reads_back_any_path(path: str) -> None:
    override = OverridesParser.create().parse_override(f"key.path={hydra_value(Path(path))}")
    assert override.key_or_group == "key.path" and override.value() == path


def test_the_command_line_survives_a_nasty_folder(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "my (1) runs, a=b" / "seed0", "opd")
    actual = {
        o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides(paths, "opd", 2, 0))
    }
    assert actual["opd.teacher.path"] == str(paths.teacher)
    assert actual["actor_rollout_ref.model.path"] == str(paths.student)
    assert actual["data.train_files"] == str(paths.data / "train.parquet")
    assert actual["data.val_files"] == str(paths.data / "heldout.parquet")
    assert actual["trainer.default_local_dir"] == str(paths.checkpoints)
    assert actual["trainer.logger"] == ["console", "file"]


def test_a_bad_override_is_refused_and_the_environment_kept() -> None:
    before = dict(os.environ)
    compose_trainer(["recipe=opd_topk", "cluster=local_cpu", "actor_rollout_ref.actor.optim.lr=1e-4", "+new.key=1"])
    for bad in ("actor_rollout_ref.actor.optim.lrr=1", "no_equals_sign=[", "--stesp"):
        with pytest.raises(SystemExit, match=f"bad override in .*{bad}".replace("[", r"\[")):
            compose_trainer(["recipe=opd_topk", "cluster=local_cpu", bad])
    assert dict(os.environ) == before


def test_recipes_share_what_is_prepared_and_nothing_else() -> None:
    item, two = Paths(Path("/out/seed0"), "opd"), Paths(Path("/out/seed0"), "grpo")
    for name in ("teacher", "student", "data", "tokenizer"):
        assert getattr(item, name) == getattr(two, name) == Path("/out/seed0") / name
    for name in ("metrics", "log", "checkpoints", "table", "picture"):
        assert getattr(item, name).parent == Path("/out/seed0/opd")
        assert getattr(two, name).parent == Path("/out/seed0/grpo")
    assert item.distilled(7) == Path("/out/seed0/opd/checkpoints/global_step_7/actor/huggingface")
    assert Paths(Path("/out")).metrics == Path("/out/metrics.jsonl")


def test_the_teachers_stop_rule_never_sees_the_evaluation() -> None:
    stop, held_out = stop_problems(), eval_problems()
    assert (len(stop), len(held_out)) == (64, 200) and not set(stop) & set(held_out)
    assert {problem.split for problem in stop + held_out} == {"heldout"}


def test_the_settings_survive_json_and_tell_runs_apart(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    todo = pupils(paths, 0)
    settings = made_with(todo, 0)
    assert json.loads(json.dumps(settings)) == settings == made_with(pupils(Paths(tmp_path / "moved"), 0), 0)
    teacher, student = todo
    others: tuple[tuple[list[Pupil], int], ...] = (
        (todo, 1),
        (pupils(paths, 1), 0),
        ([replace(teacher, size=ModelSize(hidden=64, layers=1)), student], 0),
        ([teacher, replace(student, settings=replace(student.settings, forget=0.1))], 0),
        ([replace(teacher, target=0.5), student], 0),
    )
    assert all(made_with(*other) != settings for other in others)


class InlinePool:
    """Stands in for the process pool; its pupils leave an empty folder and no training."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


def test_only_what_was_made_with_the_same_settings_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(pupil: Pupil, tokenizer_path: Path, line: int) -> int:
        assert not pupil.directory.exists() and line == len(trained) % 2
        pupil.directory.mkdir()
        trained.append(pupil.directory.name)
        return 10 + line

    monkeypatch.setattr(preparation, "train", train)
    monkeypatch.setattr(preparation, "ProcessPoolExecutor", InlinePool)
    monkeypatch.setattr(preparation, "TRAIN_PROMPTS", 8)
    monkeypatch.setattr(preparation.AutoTokenizer, "from_pretrained", lambda path: path)
    paths = Paths(tmp_path / "seed0", "opd")
    prepare(paths, 0)
    done = json.loads((paths.root / preparation.DONE).read_text())
    assert (trained, done["teacher_steps"], done["student_steps"]) == (["teacher", "student"], 10, 11)
    assert prepare(paths, 0) == paths.teacher and len(trained) == 2
    (paths.root / "notes.txt").write_text("the user's own")
    (paths.root / "grpo").mkdir()
    monkeypatch.setattr(preparation, "TRAIN_PROMPTS", 9)
    prepare(paths, 0)
    assert len(trained) == 4 and (paths.root / "notes.txt").exists() and (paths.root / "grpo").exists()
    (paths.root / preparation.DONE).unlink()  # as after an interruption
    prepare(paths, 0)
    assert len(trained) == 6


def test_the_contract_names_both_numbers_and_the_remedy() -> None:
    check_contract(student=0.399, teacher=0.90)
    for student, teacher in ((0.40, 0.95), (0.1, 0.899)):
        with pytest.raises(SystemExit, match=rf"{teacher:.1%}.*{student:.1%}.*--seed"):
            check_contract(student, teacher)


def test_only_known_recipes_are_accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["quickstart", "--recipe", "opd", "--steps", "5", "trainer.test_freq=2"])
    options, extra = quickstart.parse_arguments()
    assert (options.recipe, options.steps, extra) == ("opd", 5, ["trainer.test_freq=2"])
    monkeypatch.setattr("sys.argv", ["quickstart", "--recipe", "opd_top"])
    with pytest.raises(SystemExit):
        quickstart.parse_arguments()
    assert "invalid choice" in capsys.readouterr().err
