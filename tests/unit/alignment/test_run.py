"""A whole alignment on tiny real models, around an engine that answers without one: files, and going on."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from sampling_harness import FakeGenerate, save_model, write_problems

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.contexts.settings import ContextSettings
from opd_verl.alignment.gradients.losses import LossSettings
from opd_verl.alignment.outputs import write_results
from opd_verl.alignment.run import AlignmentResult, align
from opd_verl.alignment.tree.enrich import Budget
from opd_verl.alignment.tree.targets import TargetSettings
from opd_verl.config.command import read_settings
from opd_verl.config.errors import ConfigError
from opd_verl.objectives.names import Support
from opd_verl.sampling import read
from opd_verl.sampling.shards import Request, Response

PROMPTS, G, END = 3, 30, 1


def respond(request: Request) -> Response:
    """Three of three words, or as many as there is room for; the answer is right if the last one is the first word."""
    words = [3 + (request.seed >> (2 * place)) % 3 for place in range(min(3, request.max_tokens or 3))]
    right = words[-1] == 3
    text = " ".join(f"w{word}" for word in words) + f" \\boxed{{{request.prompt_ids[0] % 3 if right else 7}}}"
    return Response([*words, END][: request.max_tokens], text, True)


def responses(requests: Sequence[Request]) -> list[Response]:
    """A `Sample` function."""
    return [respond(request) for request in requests]


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Models are read without a child process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "run_child", lambda module, task, log: read.main(task, io.StringIO()))
        yield


def settings(tmp_path: Path) -> AlignmentConfig:
    """A student, a teacher, and the student behind a correct solution."""
    return AlignmentConfig(
        student=save_model(tmp_path / "student", 0),
        teachers=[save_model(tmp_path / "big", 1)],
        contexts=ContextSettings(names=["1c"], trials=16),
        prompts=str(write_problems(tmp_path / "test.parquet", PROMPTS)),
        out=str(tmp_path / "out"),
        rollouts=G,
        targets=TargetSettings(threshold=0.005, first_window=2, by_gradient=3, by_difference=2, enough=20),
        significant=5,
        objectives=["gkd", "single_sample", "dr_grpo", "minillm"],
        losses={"forward": LossSettings()},
        max_tokens=8,
        prompts_per_shard=2,
        resamples=100,
        workers=1,
    )


@pytest.fixture
def config(tmp_path: Path) -> AlignmentConfig:
    return settings(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[AlignmentResult, FakeGenerate]:
    return run(settings(tmp_path_factory.mktemp("undisturbed")))


def run(config: AlignmentConfig) -> tuple[AlignmentResult, FakeGenerate]:
    generate = FakeGenerate(responses)
    return align(config, generate), generate


def test_every_path_is_measured_for_every_teacher(undisturbed: tuple[AlignmentResult, FakeGenerate]) -> None:
    actual, _ = undisturbed
    rows = actual.nodes.to_pylist()
    lengths = {(row["question"], row["path"]): row["length"] for row in rows}
    assert {row["teacher"] for row in rows} == {"big", "1c"} and len(rows) == 2 * sum(lengths.values())
    assert all(0.0 < row["pass_rate"] < 1.0 and len(row["p"]) == len(row["support"]) for row in rows)
    decided = [row for row in rows if row["decision"]]
    assert len(decided) > len(rows) / 2 and actual.spent.rollouts > 500
    for row in decided:
        assert len(row["support"]) >= 2 and min(row["visits"]) >= 5.0
        assert row["success_range"] == pytest.approx(max(row["p_succ"]) - min(row["p_succ"]))
    for name in ("gkd", "single_sample", "dr_grpo", "minillm", "forward"):
        known = [row[f"cosine/{name}"] for row in decided if not math.isnan(row[f"cosine/{name}"])]
        assert len(known) > len(decided) / 4 and all(-1.0001 <= item <= 1.0001 for item in known), name
        assert all(math.isnan(row[f"cosine/{name}"]) for row in rows if not row["decision"])
    first = {(row["question"], row["path"]): row for row in rows if row["teacher"] == "big" and row["depth"] == 0}
    for (question, _), row in first.items():
        assert row["p_succ"][0] == pytest.approx(first[question, 0]["p_succ"][0], abs=0.2), "one tree for all paths"


def test_a_known_cosine_by_hand(undisturbed: tuple[AlignmentResult, FakeGenerate]) -> None:
    """From the row's own numbers, by the definition (eq. 2.3, 2.8, 2.12)."""
    row = next(row for row in undisturbed[0].nodes.to_pylist() if row["decision"] and len(row["support"]) > 2)
    p = np.array(row["p"]) / sum(row["p"])
    f = np.log(row["q"]) - np.log(row["p"])
    ideal, gkd = (p * (item - (p * item).sum()) for item in (np.array(row["p_succ"]), f))
    expected = (ideal * gkd).sum() / np.linalg.norm(ideal) / np.linalg.norm(gkd)
    assert row["cosine/gkd"] == pytest.approx(expected)
    q = np.array(row["q"]) / sum(row["q"])
    assert row["advantage"] == pytest.approx(((q - p) * row["p_succ"]).sum())


def text(result: AlignmentResult) -> str:
    """Every number; NaN is equal to itself here."""
    return json.dumps(result.nodes.to_pylist())


def test_results_are_written(undisturbed: tuple[AlignmentResult, FakeGenerate], config: AlignmentConfig) -> None:
    analysis, out = write_results(undisturbed[0], config), Path(config.out)
    assert json.dumps(pq.read_table(out / "nodes.parquet").to_pylist()) == text(undisturbed[0])
    lines = [json.loads(line) for line in (out / "nodes.jsonl").read_text().splitlines()]
    assert len(lines) == undisturbed[0].nodes.num_rows and lines[0]["teacher"] in ("big", "1c")
    content = json.loads((out / "alignment.json").read_text())
    assert list(content["objectives"]) == ["gkd", "single_sample", "dr_grpo", "minillm", "forward"]
    assert content["cost"]["rollouts"] == undisturbed[0].spent.rollouts and content["settings"]["rollouts"] == G
    page = (out / "alignment.md").read_text()
    assert "## Objectives" in page and "targeted ones" in page and analysis.teachers[0].name in page
    for name in ("cosines", "teachers", "oscillation", "tree"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    recipes = {path.stem: path.read_text() for path in (out / "conf" / "recipe").iterdir()}
    assert f"opd.teacher.path={undisturbed[0].prepared.teachers['big'].path}" in recipes["aligned_big"]
    assert "opd.context.name=1c" in recipes["aligned_1c"] and "defaults: [opsd, _self_]" in recipes["aligned_1c"]


class Killed(Exception):
    """Instead of a signal."""


class Dying(FakeGenerate):
    """Is killed after so many responses."""

    def __init__(self, after: int) -> None:
        super().__init__(responses)
        self.after = after

    def _counted(self, requests: Sequence[Request]) -> Sequence[Response]:
        if self.asked + len(requests) > self.after:
            raise Killed
        return super()._counted(requests)


@pytest.mark.parametrize("after", [2200])
def test_killed_anywhere_and_begun_again_it_gives_the_same(
    config: AlignmentConfig, undisturbed: tuple[AlignmentResult, FakeGenerate], after: int
) -> None:
    dying = Dying(after)
    with pytest.raises(Killed):
        align(config, dying)
    again, rest = run(config)
    assert text(again) == text(undisturbed[0]) and again.spent.rollouts == undisturbed[0].spent.rollouts
    assert dying.asked + rest.asked == undisturbed[1].asked, "nothing is sampled twice"


def test_another_teacher_goes_on_with_the_tree(config: AlignmentConfig, tmp_path: Path) -> None:
    """It wants fewer rollouts than on a tree of its own; the first teacher's results stay as they were."""
    config = replace(config, contexts=ContextSettings(), objectives=["gkd"], losses={})
    first, asked = run(config)
    other = replace(config, teachers=[save_model(tmp_path / "third", 5)])
    second, more = run(other)
    _, alone = run(replace(other, out=str(tmp_path / "alone")))
    assert 0 < more.asked == second.spent.rollouts < alone.asked - PROMPTS * G
    assert {row["teacher"] for row in second.nodes.to_pylist()} == {"third"}
    for settings, before in ((config, first), (other, second)):
        result, nothing = run(settings)
        assert text(result) == text(before) and nothing.asked == 0
    trees = [sum(len(question.tree) for question in item.questions) for item in (first, second)]
    assert asked.asked > 0 and trees[1] > trees[0]


def test_a_budget_is_kept(config: AlignmentConfig) -> None:
    result, generate = run(replace(config, budget=Budget(rollouts=300), contexts=ContextSettings()))
    assert 100 < result.spent.rollouts <= 300 and generate.asked == PROMPTS * G + result.spent.rollouts


def test_a_question_that_is_never_answered_is_left_out(config: AlignmentConfig) -> None:
    rows = pq.read_table(config.prompts).to_pylist()
    rows[2]["reward_model"]["ground_truth"] = "12345"
    pq.write_table(pa.Table.from_pylist(rows), config.prompts)
    config = replace(config, contexts=ContextSettings())
    result, _ = run(config)
    assert set(result.nodes["question"].to_pylist()) == {0, 1}
    pq.write_table(pa.Table.from_pylist(rows[2:]), config.prompts)
    with pytest.raises(ConfigError, match="none of 1 questions has a correct rollout"):
        run(config)


BAD = {
    "student": ({"student": None}, "student=None: is not set"),
    "nobody": ({"teachers": None, "contexts": ContextSettings()}, "no teacher and no context is given"),
    "greedy": ({"temperature": 0.0, "rollouts": 1}, "temperature|rollouts"),
    "threshold": ({"targets": TargetSettings(threshold=0.0)}, "targets.threshold=0.0"),
    "visits": ({"significant": 50}, "significant=50: must lie between 1 and targets.enough=20"),
    "objective": ({"objectives": ["opd"]}, "objectives='opd': is none of gkd, single_sample, dr_grpo, minillm"),
    "loss": ({"losses": {"mine": LossSettings(support=Support.sampled)}}, "losses.mine.support='sampled'"),
    "long": ({"max_tokens": 500}, "max_tokens=500"),
    "no paths": ({"correct_paths": 0, "incorrect_paths": 0}, "no path would be analysed"),
    "context": ({"contexts": ContextSettings(names=["5c"])}, "contexts.names='5c': no such context"),
    "plugin": ({"plugins": ["no_such_module"]}, "plugins='no_such_module'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_costs_nothing(config: AlignmentConfig, name: str) -> None:
    changes, message = BAD[name]
    generate = FakeGenerate(responses)
    with pytest.raises(ConfigError, match=message):
        align(replace(config, **changes), generate)
    assert generate.asked == 0


def test_the_config_file_has_every_default() -> None:
    with initialize_config_module("hydra_configs.alignment", version_base=None):
        composed = compose("alignment")
    assert read_settings(AlignmentConfig, composed, "file") == AlignmentConfig()
