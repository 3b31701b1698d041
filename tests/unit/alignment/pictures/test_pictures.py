"""The pictures: what they are made of is checked by value, that they are drawn by their size and ink."""

import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from node_tables import SCHEMA, Shape, node_table

from opd_verl.alignment.analysis.analyse import analyse
from opd_verl.alignment.pictures.branches import MOST_CHILDREN, DrawnNode, DrawnTree, question_tree
from opd_verl.alignment.pictures.plots import best_traces, draw_pictures
from opd_verl.alignment.pictures.tree_layout import BOX, HEIGHT, LINE, ends, lay_out, stretch_lines
from opd_verl.alignment.pictures.tree_plot import LETTERS, draw_tree, success_colours, token_text

NODES = node_table(Shape(questions=6, length=30))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A glyph that is missing, or a layout that does not fit, is a warning of matplotlib's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def decode(token: int) -> str:
    return f" t{token}"


def ink(path: Path) -> float:
    """Share of the picture's pixels that are not white."""
    return float((imread(path)[..., :3].min(axis=-1) < 0.95).mean())


def rows_of(question: int, teacher: str, path: int) -> list[dict[str, Any]]:
    wanted = {"question": question, "teacher": teacher, "path": path}
    return [row for row in NODES.to_pylist() if wanted.items() <= row.items()]


def words_of(tree: DrawnTree, path: int) -> str:
    """The text along one path."""
    return "".join(node.text for node in tree.nodes if path in node.paths)


def test_three_pictures_are_drawn(tmp_path: Path) -> None:
    names = {"Qwen3-14B-base-of-a-rather-long-name-with-a-date": 2.0, "weak": 0.1}
    nodes = node_table(Shape(questions=6, length=30), names)
    drawn = draw_pictures(nodes, analyse(nodes, "gkd", resamples=100), tmp_path)
    assert [path.name for path in drawn] == ["cosines.png", "teachers.png", "oscillation.png"]
    assert all(0.01 < ink(path) < 0.5 for path in drawn)


def test_a_picture_without_data_is_left_out(tmp_path: Path) -> None:
    nodes = node_table(Shape(questions=2, length=5, pass_rates=(0.0,)))
    assert draw_pictures(nodes, analyse(nodes, "gkd", resamples=100), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_one_question_and_one_kind_of_path_are_drawn(tmp_path: Path) -> None:
    nodes = NODES.filter(pa.array([row["question"] == 1 and row["correct"] for row in NODES.to_pylist()]))
    assert len(draw_pictures(nodes, analyse(nodes, "gkd", resamples=100), tmp_path)) == 3


def test_the_oscillation_is_that_of_the_best_teachers_richest_paths() -> None:
    correct, incorrect = best_traces(NODES, analyse(NODES, "gkd", resamples=100))
    richest = []
    for kind, numbers in (("correct", (0, 1)), ("incorrect", (2, 3))):
        traces = [[row for row in rows_of(question, "strong", number) if row["decision"]]
                  for question in range(6) for number in numbers]  # fmt: skip
        richest.append(max(traces, key=len))
        assert f"({kind}), teacher strong" in (correct if kind == "correct" else incorrect).title
    for trace, expected in zip((correct, incorrect), richest, strict=True):
        assert trace.title.startswith(f"question {expected[0]['question']}, path {expected[0]['path']} ")
        assert trace.place.tolist() == [row["depth"] for row in expected]
        assert trace.cosine.tolist() == [row["cosine/gkd"] for row in expected]


def test_the_tree_tells_every_paths_text_once(tmp_path: Path) -> None:
    tree = question_tree(NODES, 2, "weak", decode, paths=[0, 1, 2, 3])
    assert tree.correct == {0: True, 1: True, 2: False, 3: False}
    for path in range(4):
        assert words_of(tree, path) == "".join(decode(row["token"]) for row in rows_of(2, "weak", path))
    assert sum(node.tokens for node in tree.nodes if len(node.paths) == 4) == 6  # the shared beginning
    assert sorted(number for numbers in ends(tree.nodes).values() for number in numbers) == [0, 1, 2, 3]
    assert all(node.parent is None or node.parent < place for place, node in enumerate(tree.nodes))
    draw_tree(tree, tmp_path / "tree.png")
    assert 0.01 < ink(tmp_path / "tree.png") < 0.5


def test_the_tree_shows_the_largest_success_ranges_of_each_path() -> None:
    tree = question_tree(NODES, 1, "strong", decode, points=4)
    assert list(tree.correct) == [0, 2]
    shown = {tuple(round(item.p_succ, 9) for item in tree.nodes if item.branch and item.parent == parent)
             for parent in {node.parent for node in tree.nodes if node.branch}}  # fmt: skip
    expected, longest = set(), [sorted((row for row in rows_of(1, "strong", path) if row["decision"]),
                                       key=lambda row: -row["success_range"]) for path in (0, 2)]  # fmt: skip
    for place in range(30):
        for path in longest:
            if len(expected) < 4:
                row = path[place]
                expected.add(tuple(sorted((round(item, 9) for item in row["p_succ"]), reverse=True)))
    assert shown == expected


def test_a_branching_points_tokens_have_their_numbers_best_first() -> None:
    tree = question_tree(NODES, 1, "strong", decode, paths=[2], points=1)
    row = max((row for row in rows_of(1, "strong", 2) if row["decision"]), key=lambda row: row["success_range"])
    actual = [node for node in tree.nodes if node.branch]
    order = np.argsort(row["p_succ"])[::-1]
    for name in ("p", "q", "p_succ", "visits"):
        assert [getattr(node, name) for node in actual] == [row[name][place] for place in order]
    assert [node.text for node in actual] == [decode(row["support"][place]) for place in order]
    assert [node.pull for node in actual] == [row["q"][place] - row["p"][place] for place in order]
    assert [node.paths for node in actual] == [(2,) if row["support"][place] == row["token"] else () for place in order]


def hand_made(columns: dict[str, Any], *paths: list[int]) -> pa.Table:
    """A node table of one question with these tokens; position 1 is a branching point with `columns`."""
    empty: dict[str, Any] = {"support": [], "p": [], "q": [], "p_succ": [], "visits": [], "decision": False}
    rows = []
    for number, tokens in enumerate(paths):
        for depth, token in enumerate(tokens):
            about = {"question": 0, "path": number, "correct": number == 0, "depth": depth, "token": token}
            about |= {"teacher": "t", "length": len(tokens)} | (columns if depth == 1 else empty)
            rows.append(about)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


SIX: dict[str, Any] = {
    "support": [10, 11, 12, 13, 14, 15],
    "p": [0.3, 0.05, 0.2, 0.1, 0.01, 0.02],
    "q": [0.1, 0.5, 0.1, 0.1, 0.02, 0.01],
    "p_succ": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "visits": [50.0] * 6,
    "success_range": 0.5,
    "decision": True,
}


def test_at_most_four_tokens_and_always_those_that_paths_take() -> None:
    tree = question_tree(hand_made(SIX, [1, 15, 2], [1, 14, 3, 4]), 0, "t", str)
    actual = [node for node in tree.nodes if node.branch]
    assert [node.text for node in actual] == ["15", "14", "11", "10"]  # 11 and 10: the likeliest on either side
    assert [node.paths for node in actual] == [(0,), (1,), (), ()]
    assert (words_of(tree, 0), words_of(tree, 1)) == ("1152", "11434")


def test_a_taken_token_with_too_few_visits_has_no_numbers(tmp_path: Path) -> None:
    tree = question_tree(hand_made(SIX, [1, 99, 2]), 0, "t", str)
    taken = next(node for node in tree.nodes if node.branch and node.paths)
    assert (taken.text, np.isnan([taken.p, taken.q, taken.p_succ, taken.visits]).all()) == ("99", True)
    assert sum(node.branch for node in tree.nodes) == MOST_CHILDREN
    draw_tree(tree, tmp_path / "tree.png")


def test_a_path_that_ends_where_another_goes_on(tmp_path: Path) -> None:
    tree = question_tree(hand_made(SIX | {"decision": False}, [1, 2], [1, 2, 3], [1, 2]), 0, "t", str, paths=[0, 1, 2])
    assert [(node.text, node.paths, node.parent) for node in tree.nodes] == [("12", (0, 1, 2), None), ("3", (1,), 0)]
    assert ends(tree.nodes) == {0: [0, 2], 1: [1]}
    draw_tree(tree, tmp_path / "tree.png")


def test_a_branching_point_at_the_first_and_at_the_last_token(tmp_path: Path) -> None:
    nodes = hand_made(SIX, [1, 10])
    first = nodes.filter(pa.array([False, True]))
    tree = question_tree(first, 0, "t", str)
    assert {node.parent for node in tree.nodes} == {None} and all(node.branch for node in tree.nodes)
    draw_tree(tree, tmp_path / "tree.png")


def test_an_unknown_question_or_teacher_is_an_error() -> None:
    for question, teacher in ((99, "weak"), (0, "nobody")):
        with pytest.raises(ValueError, match=f"question {question} and teacher '{teacher}'"):
            question_tree(NODES, question, teacher, decode)


def test_a_path_of_30000_tokens() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 30_000).tolist()
    tree = question_tree(hand_made(SIX, tokens, [*tokens[:-1], 99]), 0, "t", str)
    assert sum(node.tokens for node in tree.nodes if 0 in node.paths) == 30_000


@given(st.integers(0, 5), st.integers(0, 6), st.sets(st.integers(0, 3), min_size=1))
def test_no_two_parts_of_the_picture_overlap(question: int, points: int, paths: set[int]) -> None:
    tree = question_tree(NODES, question, "weak", decode, sorted(paths), points)
    layout = lay_out(tree)
    parts = [layout.start, *layout.places]
    for first, other in combinations(parts, 2):
        apart = first.right <= other.left or other.right <= first.left or abs(first.middle - other.middle) >= HEIGHT
        assert apart
    for place in parts:
        assert place.left >= 0 and place.right < layout.width
        assert HEIGHT / 2 - 1e-9 <= place.middle <= layout.height - HEIGHT / 2 + 1e-9


def test_what_is_written_in_a_box() -> None:
    assert token_text(" so\n") == "␣so⏎"
    assert token_text("") == "(empty)"
    assert token_text("求x") == "□x"
    assert len(token_text("x" * 40)) == LETTERS
    assert success_colours(0.0)[1] == "#ffffff" != success_colours(1.0)[1]
    assert success_colours(float("nan"))[0] == "#ffffff"


def test_a_stretch_is_shortened_to_its_ends_and_its_length() -> None:
    assert stretch_lines(DrawnNode(None, " so it is", (0,), tokens=3)) == ["so it is"]
    assert stretch_lines(DrawnNode(None, "\n\n", (0,), tokens=1)) == ["⏎⏎"]
    assert stretch_lines(DrawnNode(None, " ", (0,))) == ["␣"]
    long = stretch_lines(DrawnNode(None, "".join(f" word{number}" for number in range(43)), (0,), tokens=43))
    assert long == ["word0 word1 word2", "… 43 tokens …", "rd40 word41 word42"[-LINE:]]


def test_mathematics_in_a_token_is_only_text(tmp_path: Path) -> None:
    nodes = (DrawnNode(None, "$\\frac{", (0,), tokens=3), DrawnNode(0, "$x_$", (0,), 1, True, 0.2, 0.3, 0.5, 30.0))
    draw_tree(DrawnTree("a $_{ title", nodes, {0: True}), tmp_path / "tree.png")
    assert ink(tmp_path / "tree.png") > 0.005


def test_the_picture_is_as_large_as_its_layout(tmp_path: Path) -> None:
    tree = question_tree(NODES, 3, "weak", decode)
    draw_tree(tree, tmp_path / "tree.png")
    height, width = imread(tmp_path / "tree.png").shape[:2]
    layout = lay_out(tree)
    assert width >= 130 * layout.width and height >= 130 * layout.height
    assert width <= 130 * 6 * (BOX + 2.5)
