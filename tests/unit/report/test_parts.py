"""The report's small functions by hand: gaps, names, choices, labels, series, and the evaluation's table read back."""

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.figure import Figure
from report_harness import write_evaluation, write_probe, write_training

from opd_verl.eval.plots import draw_entropies, draw_pass_at_k, entropy_panel
from opd_verl.eval.table import rows_from_json
from opd_verl.report import teacher
from opd_verl.report.chart import Theme
from opd_verl.report.curves import marked
from opd_verl.report.depth_map import grid_of
from opd_verl.report.quadrant_map import quadrants
from opd_verl.report.read import evenly, read_runs, recipe_of, run_names
from opd_verl.report.runs import ReportedRun, alerts, last, points, with_gaps
from opd_verl.tracking.metrics_file import write_steps
from opd_verl.utils.plot_style import End, label_ends, series, short, spread

NAN = math.nan


def run(**values: list[float | None]) -> ReportedRun:
    """Steps 1, 2, ... with these metrics; None where a step has none."""
    count = max(map(len, values.values()))
    steps = [
        {"step": at + 1, **{f"opd/{name}": value[at] for name, value in values.items() if value[at] is not None}}
        for at in range(count)
    ]
    return ReportedRun("A", "run", "opd", steps)


def test_a_missing_value_is_a_gap_and_a_rare_metric_has_none() -> None:
    missing = points(run(rho=[0.1, 0.2, NAN, 0.4, 0.5, None, 0.7]), "opd/rho")
    assert missing == [(1, 0.1), (2, 0.2), (4, 0.4), (5, 0.5), (7, 0.7)]
    assert [step for step, value in with_gaps(missing) if math.isnan(value)] == [2, 5]
    rare = [(5, 0.1), (10, 0.2), (15, 0.3), (25, 0.4)]
    assert [step for step, value in with_gaps(rare) if math.isnan(value)] == [15]
    assert with_gaps([]) == [] and with_gaps([(3, 1.0)]) == [(3, 1.0)]


def test_points_that_no_line_reaches_are_marked() -> None:
    line = [(step, 0.5) for step in range(60)]
    line[40:43] = [(40, NAN), (41, 0.5), (42, NAN)]
    assert {0, 4, 41} <= set(marked(line)) and len(marked(line)) <= 17


def test_the_last_known_value_counts() -> None:
    result = run(rho=[0.1, 0.2, NAN], other=[math.inf, None, 3])
    assert (
        last(result, "opd/rho") == (2, 0.2)
        and last(result, "opd/other") == (3, 3.0)
        and last(result, "opd/none") is None
    )


def test_the_teachers_charts_say_their_ends(tmp_path: Path) -> None:
    (actual,) = read_runs([write_probe(tmp_path / "probe")], 0)
    place, topk = teacher.charts([actual])
    assert "before → Qwen3-8B: 44% after 75%" in place.text
    assert "before → Qwen3-8B: k = 16 keeps 99.72% for 88 bytes" in topk.text
    for chart in (place, topk):
        figure = Figure()
        chart.draw(figure, Theme("black", "gray", "white"))
        lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith("_")]
        assert len(lines) == len(actual.pairs)
    assert teacher.charts([run(rho=[0.1])]) == []


def test_a_pipelines_stage_is_read_from_its_attempts(tmp_path: Path) -> None:
    for name, steps in (("metrics-000.jsonl", range(1, 4)), ("metrics-001.jsonl", range(3, 6))):
        write_steps(tmp_path / name, [{"step": step, "opd/rho": step / 10} for step in steps])
    (actual,) = read_runs([tmp_path], 0)
    assert points(actual, "opd/rho") == [(step, step / 10) for step in range(1, 6)]


def test_alerts_are_told_with_their_steps() -> None:
    assert list(alerts(run(**{"alert/a": [0.0, 1.0, 1.0], "alert/b": [0.0, 0.0, 0.0]}))) == [("a", [2, 3])]


def test_depths_are_in_order_of_position_with_nan_for_what_is_missing() -> None:
    result = run(**{"depth/512-1023/reward": [-1.0, None], "depth/0-511/reward": [-0.5, -0.25]})
    steps, grid = grid_of(result)
    assert steps == [1, 2] and grid[0].tolist() == [-0.5, -0.25] and grid[1][0] == -1.0 and math.isnan(grid[1][1])


def test_quadrants_need_all_masses_and_forces() -> None:
    known = {f"q{number}_{kind}": 0.25 for number in range(1, 5) for kind in ("mass", "force")}
    shares = quadrants(lambda name: known.get(name, NAN))
    assert shares is not None and shares.total == 1.0 and math.isnan(shares.dest_corr)
    known |= {"destructive_mass": 0.1, "destructive_reward": 0.5, "corrective_mass": 0.2, "corrective_reward": 0.125}
    shares = quadrants(lambda name: known.get(name, NAN))
    assert shares is not None and shares.destructive / shares.corrective == pytest.approx(2.0)
    known["q4_force"] = NAN
    assert quadrants(lambda name: known.get(name, NAN)) is None


def test_names_are_as_long_as_they_must_be() -> None:
    folders = [Path("/a/opd/seed1"), Path("/a/eopd/seed1")]
    assert run_names(folders) == ["opd/seed1", "eopd/seed1"] and run_names(folders[:1]) == ["seed1"]
    assert short("x" * 24) == "x" * 24 and len(short("a" * 40 + "b")) == 24 and short("a" * 40 + "b")[-1] == "b"


@given(st.integers(0, 30), st.integers(0, 10))
def test_an_even_choice_has_both_ends(length: int, count: int) -> None:
    chosen = evenly(range(length), count)
    assert len(chosen) == min(length, count) and chosen == sorted(set(chosen))
    if count > 1 and length > 1:
        assert (chosen[0], chosen[-1]) == (0, length - 1)


def test_samples_are_of_the_first_the_middle_and_the_last_step(tmp_path: Path) -> None:
    write_training(tmp_path / "run", 0.9, 1)
    (item,) = read_runs([tmp_path / "run"], 5)
    assert [shown.step for shown in item.shown] == [10, 10, 30, 30, 40] and item.recipe == "eopd"
    assert [shown.sample.why for shown in item.shown[:2]] == ["lowest mean r_t", "highest mean r_t"]
    assert read_runs([tmp_path / "run"], 0)[0].shown == [] and recipe_of(tmp_path / "none") == ""


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_labels_keep_apart_and_in_order(places: list[float]) -> None:
    places_found = spread(places, 0.1)
    order = sorted(range(len(places)), key=places.__getitem__)
    room = min(0.1, 1 / max(len(places) - 1, 1))
    assert all(places_found[after] - places_found[before] > room - 1e-9 for before, after in pairwise(order))
    assert min(places_found) >= -1e-9 and max(places_found) <= 1 + 1e-9


def test_a_label_that_is_alone_stays_beside_its_line() -> None:
    assert spread([0.3, 0.9], 0.1) == [0.3, 0.9]
    axes = Figure().subplots()
    axes.plot([0, 10], [0, 1])
    label_ends(axes, [End("A", 10, 1, "#0072b2"), End("B", 10, 0.99, "#d55e00")])
    assert [text.get_text() for text in axes.texts] == ["A", "B"]


def test_series_differ_without_colour() -> None:
    looks = [series(index) for index in range(84)]
    assert len({tuple(look.values()) for look in looks}) == 84
    assert len({(look["linestyle"], look["marker"]) for look in looks[:12]}) == 12


def test_the_evaluations_table_comes_back(tmp_path: Path) -> None:
    content = json.loads((write_evaluation(tmp_path) / "table.json").read_text())
    rows = rows_from_json(content)
    assert json.loads(json.dumps([asdict(row) for row in rows])) == content["rows"]
    assert rows[0].pass_at[16].value == content["rows"][0]["pass_at"]["16"]["value"]
    draw_pass_at_k(rows, tmp_path / "pass.png")
    draw_entropies(rows, tmp_path / "entropy.png")
    assert all(image.imread(tmp_path / name).std() > 0.05 for name in ("pass.png", "entropy.png"))


def test_the_share_of_uncertain_tokens_is_told() -> None:
    axes = Figure().subplots()
    entropy_panel(axes, {"student": [90, *[0] * 9, 6, *[0] * 39, 4]})
    legend = axes.get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["student: 10.0% at ≥ 1 nats"]
