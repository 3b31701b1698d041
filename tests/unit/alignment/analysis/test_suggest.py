"""Suggestions of an alignment for training: each rule by value, and the file composed with verl's own config."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from node_tables import Shape, node_table
from omegaconf import OmegaConf

from opd_verl.alignment.analysis.analyse import Analysis, PathGroup, analyse
from opd_verl.alignment.analysis.comparing import Comparison
from opd_verl.alignment.analysis.measures import COSINE, SIGNAL, filtered, spearman
from opd_verl.alignment.analysis.suggest import direction, filtering, recipe_yaml, weighting, write_recipe
from opd_verl.checks.objective import check_names, check_numbers
from opd_verl.config.opd import OpdConfig, parse_opd
from opd_verl.metrics.estimate import Estimate

RISING = Estimate(0.05, 0.01, 0.09)
FLAT = Estimate(0.05, -0.01, 0.09)
SIGNALS = {0.25: 0.02, 0.5: 0.04, 0.75: 0.03}
MADE = analyse(node_table(Shape(questions=8, length=20)), "gkd", resamples=100)


def about(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width)


def group_of(
    correct: float = 0.1,
    incorrect: float = 0.4,
    difference: Estimate | None = None,
    rank: Estimate = FLAT,
    signals: dict[float, float] = SIGNALS,
    questions: int = 20,
    mean: Estimate = RISING,
) -> PathGroup:
    """A teacher with these numbers; all else is from a made-up table."""
    gap = about(correct - incorrect) if difference is None else difference
    sides = Comparison(about(correct), about(incorrect), gap, 0.5, 0.5, questions)
    actual = {spearman("kl"): rank, SIGNAL: about(0.01), COSINE: mean}
    actual |= {filtered(item): about(value) for item, value in signals.items()}
    item = MADE.teachers[0]
    return replace(item, name="T", questions=questions, sides=item.sides | {COSINE: sides}, means=item.means | actual)


def analysis_of(*groups: PathGroup) -> Analysis:
    return replace(MADE, teachers=list(groups))


def composed(path: Path, *overrides: str) -> OpdConfig:
    """The opd section of verl's own config with the file as its recipe, checked as a run checks it."""
    conf = path.parents[1]
    assert (path.parent.name, conf.name) == ("recipe", "conf")
    with initialize_config_module("verl.trainer.config", version_base=None):
        where = f"hydra.searchpath=[file://{conf}]"  # what --config-dir does
        named = [where, f"recipe={path.stem}", "opd.teacher.path=somewhere", *overrides]
        config = compose("ppo_trainer", overrides=named)
    opd = parse_opd(config)
    check_names(config, opd)
    check_numbers(config, opd)
    return opd


def recipe_opd() -> OpdConfig:
    """The recipe as it is."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return parse_opd(compose("ppo_trainer", overrides=["recipe=opd", "opd.teacher.path=somewhere"]))


def plain(opd: OpdConfig) -> dict[str, object]:
    """The section as nested dictionaries, to compare."""
    actual = OmegaConf.to_container(OmegaConf.structured(opd))
    assert isinstance(actual, dict)
    return {str(key): value for key, value in actual.items()}


def test_the_file_is_a_recipe_that_verl_takes(tmp_path: Path) -> None:
    path = write_recipe(analysis_of(group_of(rank=RISING)), "T", tmp_path)
    opd = composed(path)
    tokens = opd.tokens
    assert (tokens.weights, tokens.correct, tokens.incorrect) == (["correctness"], 0.25, 1.0)
    assert (tokens.masks, tokens.divergence_quantile) == (["high_divergence"], 0.5)
    assert opd.teacher.path == "somewhere"


def test_nothing_else_of_the_recipe_changes(tmp_path: Path) -> None:
    changed = plain(composed(write_recipe(analysis_of(group_of(rank=RISING)), "T", tmp_path)))
    usual = plain(recipe_opd())
    assert changed.pop("tokens") != usual.pop("tokens")
    assert changed == usual


def test_where_nothing_is_suggested_the_file_is_recipe_opd_and_says_why(tmp_path: Path) -> None:
    path = write_recipe(analysis_of(group_of(difference=FLAT)), "T", tmp_path)
    text = " ".join(path.read_text().replace("#", " ").split())
    assert "No weight by correctness: mean cosine +0.1000" in text and "whose interval does not exclude 0" in text
    assert "No divergence filter: rank correlation of cosine and KL +0.0500 [-0.0100, +0.0900]" in text
    assert composed(path) == recipe_opd()


def test_the_command_in_the_file_is_the_one_that_reads_it(tmp_path: Path) -> None:
    path = write_recipe(analysis_of(group_of()), "T", tmp_path)
    words = shlex.split(path.read_text().splitlines()[1].removeprefix("# "))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert words[words.index("--config-dir") + 1] == str(path.parents[1])
    assert f"recipe={path.stem}" in words and "opd.teacher.path=TEACHER" in words
    assert path.read_text().startswith("# @package _global_\n")


@pytest.mark.parametrize("teacher", ["Qwen2.5-0.5B_x", "a+b", "1c"])
def test_a_teachers_name_becomes_a_recipes(teacher: str, tmp_path: Path) -> None:
    path = write_recipe(analysis_of(replace(group_of(), name=teacher)), teacher, tmp_path)
    assert composed(path).tokens.correct == 0.25


def test_a_context_goes_with_recipe_opsd(tmp_path: Path) -> None:
    path = write_recipe(analysis_of(group_of()), "T", tmp_path, base="opsd", own="opd.context.name=3c")
    opd = composed(path, "opd.context.name=3c")
    assert (opd.context.name, opd.tokens.correct) == ("3c", 0.25)
    assert "defaults: [opsd, _self_]" in path.read_text()
    assert "opd.context.name=3c" in path.read_text()


def test_every_number_that_a_line_rests_on_is_said(tmp_path: Path) -> None:
    text = write_recipe(analysis_of(group_of(rank=RISING)), "T", tmp_path).read_text()
    assert max(map(len, text.splitlines()[2:])) <= 120
    said = " ".join(text.replace("#", " ").split())
    for number in ("+0.1000 [+0.0900, +0.1100] on correct", "+0.4000 [+0.3900, +0.4100] on incorrect",
                   "difference -0.3000 [-0.3100, -0.2900]", "0.1000 / 0.4000",
                   "KL +0.0500 [+0.0100, +0.0900]", "mean signal +0.0100 at all",
                   "+0.0200 above its 0.25 quantile, +0.0400 above its 0.5", "+0.0300 above its 0.75"):  # fmt: skip
        assert number in said, number


@pytest.mark.parametrize(
    ("correct", "incorrect", "lines"),
    [
        (0.1, 0.4, {"weights": "[correctness]", "correct": "0.250", "incorrect": "1.0"}),
        (0.4, 0.1, {"weights": "[correctness]", "incorrect": "0.250", "correct": "1.0"}),
        (-0.1, 0.4, {"weights": "[correctness]", "correct": "0.000", "incorrect": "1.0"}),
        (-0.4, -0.1, {}),
        (-0.4, 0.0, {}),
    ],
)
def test_the_weight_is_the_ratio_of_the_cosines(correct: float, incorrect: float, lines: dict[str, str]) -> None:
    assert weighting(group_of(correct, incorrect)).lines == lines


def test_a_difference_that_may_be_0_gives_no_weight() -> None:
    for gap in (Estimate(-0.3, -0.7, 0.1), Estimate(-0.3, -0.6, 0.0), Estimate(-0.3, math.nan, math.nan)):
        assert not weighting(group_of(difference=gap)).lines


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_weight_lies_between_0_and_1_and_the_better_kind_keeps_its_own(correct: float, incorrect: float) -> None:
    actual = weighting(group_of(correct, incorrect, difference=Estimate(correct - incorrect, 0.1, 0.2))).lines
    assert bool(actual) == (max(correct, incorrect) > 0)
    if actual:
        weights = {kind: float(actual[kind]) for kind in ("correct", "incorrect")}
        better = "correct" if correct > incorrect else "incorrect"
        assert weights[better] == 1.0
        assert min(weights.values()) == pytest.approx(
            max(min(correct, incorrect) / max(correct, incorrect), 0), abs=6e-4
        )


@pytest.mark.parametrize(
    ("rank", "signals", "quantile"),
    [
        (RISING, SIGNALS, "0.5"),
        (RISING, {0.25: 0.05, 0.5: 0.04, 0.75: math.nan}, "0.25"),
        (RISING, {0.25: 0.01, 0.5: 0.009, 0.75: 0.0}, None),
        (RISING, dict.fromkeys(SIGNALS, math.nan), None),
        (FLAT, SIGNALS, None),
        (Estimate(-0.05, -0.09, -0.01), SIGNALS, None),
        (Estimate(math.nan, math.nan, math.nan), SIGNALS, None),
    ],
)
def test_the_filter_takes_the_quantile_with_the_most_signal(
    rank: Estimate, signals: dict[float, float], quantile: str | None
) -> None:
    advice = filtering(group_of(rank=rank, signals=signals))
    expected = {} if quantile is None else {"masks": "[high_divergence]", "divergence_quantile": quantile}
    assert advice.lines == expected


def test_too_few_questions_suggest_nothing() -> None:
    for questions, some in ((5, False), (6, True)):
        group = group_of(rank=RISING, questions=questions)
        assert (bool(weighting(group).lines), bool(filtering(group).lines)) == (some, some)
    assert "5 questions are too few" in weighting(group_of(questions=5)).why


@pytest.mark.parametrize("mean", [FLAT, Estimate(-0.1, -0.2, -0.05), Estimate(0.3, math.nan, math.nan)])
def test_a_teacher_that_does_not_point_to_success_is_said_to_be_no_good_one(mean: Estimate) -> None:
    assert "No weight and no filter makes this a good teacher" in direction(group_of(mean=mean))
    assert "points to success." in direction(group_of(mean=RISING))


def test_a_measured_teacher_from_table_to_recipe(tmp_path: Path) -> None:
    analysis = analyse(node_table(Shape(questions=12)), "gkd", resamples=200)
    actual = analysis.teachers[0].sides[COSINE]
    opd = composed(write_recipe(analysis, "strong", tmp_path))
    assert opd.tokens.correct == pytest.approx(actual.correct.value / actual.incorrect.value, abs=6e-4)
    assert opd.tokens.weights == ["correctness"]


def test_an_unknown_teacher_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no teacher 'X' \(there are: strong, weak"):
        recipe_yaml(MADE, "X", Path("conf"))
