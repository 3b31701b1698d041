"""From the node table to the tables: against loops written from the definitions, the papers' exclusions, the edges."""

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from node_tables import Shape, node_table
from rich.console import Console
from scipy.stats import spearmanr, ttest_ind, wilcoxon

from opd_verl.alignment.analysis.analyse import Analysis, analyse, to_json
from opd_verl.alignment.analysis.comparing import signed_rank, welch
from opd_verl.alignment.analysis.markdown import SECTIONS, to_markdown
from opd_verl.alignment.analysis.measures import COMPARED, COSINE, FEATURES, MEANINGS, POINTS, SIGNAL, spearman
from opd_verl.alignment.analysis.paths import measure_paths, rank_correlation
from opd_verl.alignment.analysis.points import read_tokens
from opd_verl.alignment.analysis.terminal import print_analysis
from opd_verl.alignment.tree.difficulty import difficulty
from opd_verl.config.errors import ConfigError
from opd_verl.metrics.bootstrap import draws

RESAMPLES = 200
NODES = node_table(Shape(questions=9, length=30))
Row = dict[str, Any]


def set_where(nodes: pa.Table, name: str, chosen: np.ndarray, value: Any) -> pa.Table:
    """The table with a column's chosen rows replaced."""
    values = [value if yes else old for yes, old in zip(chosen, nodes[name].to_pylist(), strict=True)]
    place = nodes.schema.get_field_index(name)
    return nodes.set_column(place, nodes.schema.field(name), pa.array(values, nodes.schema.field(name).type))


def column(nodes: pa.Table, name: str) -> np.ndarray:
    return np.array(nodes[name].to_pylist())


def by_path(nodes: pa.Table) -> dict[tuple[int, int, str], list[Row]]:
    """The rows of each question, path and teacher."""
    collected: dict[tuple[int, int, str], list[Row]] = {}
    for row in nodes.to_pylist():
        collected.setdefault((row["question"], row["path"], row["teacher"]), []).append(row)
    return collected


def naive_path(rows: list[Row]) -> dict[str, float]:
    """Every measurement of one path, from the definitions."""
    points = [row for row in rows if row["decision"]]
    cosines = np.array([row["cosine/gkd"] for row in points])
    ranges = np.array([row["success_range"] for row in points])
    signal, kl = ranges * cosines, np.array([row["kl"] for row in points])
    features = {name: [row[name] for row in points] for name in FEATURES if name != "depth"}
    features["depth"] = [row["depth"] / row["length"] for row in points]
    actual = {
        "cosine": cosines.mean(),
        "weighted_cosine": signal.sum() / ranges.sum(),
        "positive_share": sum(cosine > 0 for cosine in cosines) / len(cosines),
        "advantage": np.mean([row["advantage"] for row in points]),
        "points": len(points),
        "signal": signal.mean(),
    }
    actual |= {f"spearman/{name}": spearmanr(cosines, values).statistic for name, values in features.items()}
    for threshold, name in ((0.0, "0"), (0.3, "0.3")):
        kept = signal[cosines > threshold]
        actual[f"selective/{name}"] = kept.mean()
        actual[f"retained/{name}"] = len(kept) / len(points)
        actual[f"beats/{name}"] = float(kept.mean() > signal.mean())
    for quantile in (0.25, 0.5, 0.75):
        ordered = sorted(row["kl"] for row in rows)
        least = ordered[math.ceil(quantile * (len(ordered) - 1))]
        actual[f"signal_above_kl/{quantile:g}"] = signal[kl >= least].mean()
    return actual


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(NODES, "gkd", resamples=RESAMPLES)


def test_every_measurement_of_every_path_is_the_definitions() -> None:
    tokens, paths = read_tokens(NODES, "gkd"), by_path(NODES)
    paths_measured = measure_paths(tokens)
    assert paths_measured.keys() == MEANINGS.keys()
    assert len(tokens.paths.question) == len(paths) == 9 * 4 * 2
    for unit, key in enumerate(zip(tokens.paths.row, tokens.paths.number, tokens.paths.teacher, strict=True)):
        expected = naive_path(paths[key])
        assert {name: values[unit] for name, values in paths_measured.items()} == pytest.approx(expected, abs=1e-12)


def test_the_order_of_the_rows_does_not_matter(analysis: Analysis) -> None:
    shuffled = NODES.take(np.random.default_rng(0).permutation(len(NODES)))
    assert to_json(analyse(shuffled, "gkd", resamples=RESAMPLES)) == to_json(analysis)


def test_a_teachers_mean_counts_each_path_once_and_draws_whole_questions(analysis: Analysis) -> None:
    means = {key: naive_path(rows)["cosine"] for key, rows in by_path(NODES).items()}
    drawn = draws(9, RESAMPLES, 0)
    for item in analysis.teachers:
        of_questions = [
            [mean for (row, _, teacher), mean in means.items() if row == question and teacher == item.name]
            for question in range(9)
        ]
        actual = [
            np.average(np.concatenate(of_questions), weights=np.repeat(times, [len(part) for part in of_questions]))
            for times in drawn.numpy()
        ]
        assert item.means[COSINE].value == pytest.approx(np.mean(np.concatenate(of_questions)))
        ends = (item.means[COSINE].low, item.means[COSINE].high)
        assert ends == pytest.approx(np.quantile(actual, [0.025, 0.975]).tolist())
        assert (item.paths, item.questions) == (36, 9)
    assert [item.name for item in analysis.teachers] == ["strong", "weak"]
    assert analysis.teachers[0].means[COSINE].value > analysis.teachers[1].means[COSINE].value
    together = analysis.together.means[COSINE].value
    assert together == pytest.approx(np.mean([item.means[COSINE].value for item in analysis.teachers]))


@pytest.mark.parametrize("name", COMPARED)
def test_correct_and_incorrect_paths_are_compared_over_paths_and_over_questions(analysis: Analysis, name: str) -> None:
    values = {key: (naive_path(rows)[name], rows[0]["correct"]) for key, rows in by_path(NODES).items()}
    for group, teachers in ((analysis.together, {"strong", "weak"}), (analysis.teachers[1], {"weak"})):
        mine = {key: item for key, item in values.items() if key[2] in teachers}
        correct, incorrect = ([value for value, kind in mine.values() if kind is side] for side in (True, False))
        pairs = []
        for question in range(9):
            kinds = [[value for key, (value, kind) in mine.items() if key[0] == question and kind is side]
                     for side in (True, False)]  # fmt: skip
            pairs.append(np.mean(kinds[0]) - np.mean(kinds[1]))
        actual = group.sides[name]
        assert actual.correct.value == pytest.approx(np.mean(correct))
        assert actual.incorrect.value == pytest.approx(np.mean(incorrect))
        assert actual.difference.value == pytest.approx(np.mean(pairs))  # two paths of each kind in every question
        replicates = (draws(9, RESAMPLES, 0) @ torch.tensor(pairs) / 9).numpy()
        ends = (actual.difference.low, actual.difference.high)
        assert ends == pytest.approx(np.quantile(replicates, [0.025, 0.975]).tolist())
        assert actual.welch == pytest.approx(ttest_ind(correct, incorrect, equal_var=False).pvalue)
        assert actual.wilcoxon == pytest.approx(wilcoxon(pairs).pvalue)
        assert actual.questions == 9


def test_questions_without_a_correct_rollout_are_counted_and_nothing_else() -> None:
    hard = node_table(Shape(questions=8, length=20, pass_rates=(0.0, 0.8, 0.25, 0.1)))
    others = hard.filter(pa.array(column(hard, "pass_rate") > 0))
    with_them, without = (to_json(analyse(nodes, "gkd", resamples=100)) for nodes in (hard, others))
    assert with_them.pop("questions") == {"easy": 2, "medium": 2, "hard": 2, "extremely hard": 2}
    assert without.pop("questions")["extremely hard"] == 0
    assert with_them == without


def test_the_ends_of_the_difficulties() -> None:
    rates = np.array([1.0, 0.8, np.nextafter(0.8, 0), 0.25, np.nextafter(0.25, 0), 1e-9, 0.0])
    assert difficulty(rates).tolist() == ["easy"] * 2 + ["medium"] * 2 + ["hard"] * 2 + ["extremely hard"]


def test_the_mean_cosine_of_each_difficulty(analysis: Analysis) -> None:
    for teacher in analysis.teachers:
        for place, level in enumerate(("easy", "medium", "hard")):  # the pass rates of Shape, in turn
            mine = {key: rows for key, rows in by_path(NODES).items() if key[0] % 3 == place and key[2] == teacher.name}
            expected = np.mean([naive_path(rows)["cosine"] for rows in mine.values()])
            assert teacher.bins[level].value == pytest.approx(expected)
            assert teacher.bins[level].low < expected < teacher.bins[level].high


def test_the_distribution_counts_every_decision_point_by_kind(analysis: Analysis) -> None:
    cosines, correct = column(NODES, "cosine/gkd").astype(float), column(NODES, "correct")
    kept = column(NODES, "decision")
    actual = analysis.together.cosines
    assert actual.mean == pytest.approx(cosines[kept].mean())
    assert actual.std == pytest.approx(cosines[kept].std())
    assert (sum(actual.correct), sum(actual.incorrect)) == ((kept & correct).sum(), (kept & ~correct).sum())
    assert actual.correct[-1] == (kept & correct & (cosines >= 0.9)).sum()
    assert analysis.together.points == kept.sum() == sum(teacher.points for teacher in analysis.teachers)


def test_a_cosine_that_rounding_puts_above_1_is_counted(analysis: Analysis) -> None:
    above = column(NODES, "decision") & (column(NODES, "cosine/gkd").astype(float) > 0.9)
    actual = analyse(set_where(NODES, "cosine/gkd", above, 1 + 1e-12), "gkd", resamples=100).together
    assert actual.cosines.correct == analysis.together.cosines.correct
    assert actual.cosines.incorrect[-1] > 0


def test_decision_points_without_a_cosine_are_counted_apart() -> None:
    gone = column(NODES, "decision") & (column(NODES, "teacher") == "weak") & (column(NODES, "depth") % 2 == 0)
    actual = analyse(set_where(NODES, "cosine/gkd", gone, None), "gkd", resamples=100)
    assert actual.undefined == gone.sum() > 0
    assert f"{gone.sum()} decision points have no cosine" in to_markdown(actual)
    assert actual.together.points == column(NODES, "decision").sum() - gone.sum()


def test_a_path_without_decision_points_has_no_mean_but_counts_among_the_points() -> None:
    empty = (column(NODES, "path") == 3) & (column(NODES, "question") == 0)
    actual = analyse(set_where(NODES, "decision", empty, False), "gkd", resamples=100).teachers[0]
    assert actual.paths == 35
    assert actual.means[POINTS].value == pytest.approx(actual.points / 36)


def test_few_or_equal_values_have_no_rank_correlation() -> None:
    short = set_where(NODES, "decision", column(NODES, "depth") >= 2, False)
    assert np.isnan(measure_paths(read_tokens(short, "gkd"))[spearman("kl")]).all()
    flat = measure_paths(read_tokens(set_where(NODES, "kl", np.ones(len(NODES), bool), 0.1), "gkd"))
    assert np.isnan(flat[spearman("kl")]).all() and not np.isnan(flat[spearman("js")]).any()


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=5, max_size=30))
def test_rank_correlation_is_scipys_also_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    correlations = rank_correlation(np.stack([first, second, np.exp(second)]))
    if np.ptp(first) and np.ptp(second):
        assert correlations == pytest.approx([spearmanr(first, second).statistic] * 2)
    else:
        assert np.isnan(correlations).all()


@given(st.integers(0, 10**6))
def test_the_oracle_never_loses_to_the_whole_path(seed: int) -> None:
    paths_measured = measure_paths(read_tokens(node_table(Shape(questions=1, length=8), {"one": 1.0}, seed), "gkd"))
    full, kept = paths_measured[SIGNAL], paths_measured["retained/0"] > 0
    assert (paths_measured["selective/0"][kept] >= full[kept] - 1e-12).all()
    assert (paths_measured["retained/0.3"][kept] <= paths_measured["retained/0"][kept]).all()
    all_kept = paths_measured["retained/0"] == 1
    assert (paths_measured["selective/0"][all_kept] == full[all_kept]).all() and not paths_measured["beats/0"][
        all_kept
    ].any()


def test_a_path_that_keeps_nothing_does_not_beat_the_whole_one() -> None:
    worst = set_where(NODES, "cosine/gkd", column(NODES, "decision"), -0.5)
    actual = analyse(worst, "gkd", resamples=100).together.means
    assert math.isnan(actual["selective/0"].value)
    assert (actual["retained/0"].value, actual["beats/0"].value) == (0.0, 0.0)


def test_tests_that_cannot_say_anything() -> None:
    assert math.isnan(signed_rank(np.arange(1.0, 6.0)))
    assert signed_rank(np.arange(1.0, 7.0)) == pytest.approx(2 / 2**6)
    assert signed_rank(np.zeros(8)) == 1.0
    assert math.isnan(welch(np.ones(1), np.arange(3.0)))
    assert math.isnan(welch(np.ones(3), np.zeros(3)))


def test_one_question_has_values_and_no_interval() -> None:
    actual = analyse(node_table(Shape(questions=1)), "gkd", resamples=100)
    item = actual.teachers[0]
    assert math.isfinite(item.means[COSINE].value) and math.isnan(item.means[COSINE].low)
    assert math.isfinite(item.sides[COSINE].difference.value) and math.isnan(item.sides[COSINE].difference.high)


def test_nothing_to_measure_is_said_not_made_up() -> None:
    for nodes in (node_table(Shape(questions=2, length=8, pass_rates=(0.0,))), NODES.slice(0, 0)):
        actual = analyse(nodes, "gkd", resamples=100)
        assert actual.teachers == [] and actual.together.points == 0
        assert to_json(actual)["together"]["means"]["cosine"] == {"value": None, "low": None, "high": None}
        assert "| all teachers | - | - | 0 |" in to_markdown(actual)


def test_an_unknown_objective_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"objective='minillm'.*it has: gkd"):
        analyse(NODES, "minillm")


def test_json_has_no_word_for_undefined(analysis: Analysis) -> None:
    content = json.loads(json.dumps(to_json(analysis), allow_nan=False))
    strong = content["teachers"][0]
    assert strong["means"]["cosine"]["value"] == analysis.teachers[0].means[COSINE].value
    assert strong["sides"]["advantage"]["questions"] == 9
    assert len(content["edges"]) == len(strong["cosines"]["correct"]) + 1


def blocks(text: str) -> Iterator[list[list[str]]]:
    """The tables of a Markdown text, as cells."""
    for part in text.split("\n\n"):
        if part.startswith("| "):
            yield [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]


def test_the_markdown_says_what_every_column_is(analysis: Analysis) -> None:
    text = to_markdown(analysis)
    tables = list(blocks(text))
    assert len(tables) == len(SECTIONS) == 8
    teachers = ["all teachers", "strong", "weak"]
    for table, section in zip(tables, SECTIONS, strict=True):
        assert {len(row) for row in table} == {len(table[0])}
        for heading in table[0][1:]:
            said = [item for item in section.columns if heading in item.split(":")[0]]
            shared = "Each" if heading in teachers else "All columns"
            assert said or any(shared in item for item in section.columns), heading
    ranking = tables[0]
    assert [row[0] for row in ranking[2:]] == ["strong", "weak"]
    assert ranking[2][1].startswith(f"{analysis.teachers[0].means[COSINE].value:+.3f} [")


def test_the_terminal_shows_both_tables_in_80_columns() -> None:
    leans = {"Qwen3-14B-base-of-a-rather-long-name-with-a-date-2026-08-21": 2.0, "weak": 0.5}
    actual = analyse(node_table(Shape(questions=4, pass_rates=(0.5, 0.5, 0.5, 0.0)), leans), "gkd", resamples=100)
    out = io.StringIO()
    print_analysis(actual, Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "questions without a correct rollout, left out: 1" in text
    assert f"{actual.teachers[1].sides[COSINE].incorrect.value:+.3f}" in text
