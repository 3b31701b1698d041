"""`dedup`: which questions are the same, that the index misses no pair, and that what stays holds no duplicate."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.data.__main__ import main
from opd_verl.data.files import make_table, write_table
from opd_verl.data.matching import NearIndex, duplicates, grams, jaccard, normalise, rarest_first, words
from opd_verl.data.templates import TEMPLATES, fill

TEXTS = st.lists(st.text("ab c", min_size=1, max_size=12), max_size=12)
LONG = (
    "A train leaves the station at noon and travels north at 60 miles per hour while another train leaves the same "
    "station one hour later and travels east at 45 miles per hour. A third train waits until both have gone, and then "
    "follows whichever is nearer to the harbour; how far apart are the first two trains at four in the afternoon?"
)


def write(path: Path, questions: list[str], template: str = "boxed") -> Path:
    prompts = [[{"role": "user", "content": fill(TEMPLATES[template], text)}] for text in questions]
    write_table(make_table([{"prompt": prompt, "level": place} for place, prompt in enumerate(prompts)]), path)
    return path


def kept(path: Path) -> list[int]:
    return pq.read_table(path)["level"].to_pylist()


def removed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_suffix(".removed.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Find $x$.", "find x"),
        ("Find \\(x\\)", "Find\n\n$$ x $$"),
        ("Let $a = 1,\\, b = 2$", "let $a=1$, $b=2$"),
        ("$\\dfrac{1}{2} \\quad x^{2}$", "$\\frac 1 2 x^2$"),
        ("$\\left( 3, \\mathrm x \\right)$", "$(3, x)$"),
        ("Janet\u2019s \u201cduck\u201d", 'Janet\'s "duck"'),
        ("\ufb01nd \u00bd", "FIND 1\u20442"),
        ("?", "? "),
    ],
)
def test_ways_to_write_one_question(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("$2-3$", "$2+3$"),
        ("$5!$", "$5$"),
        ("$1.5$", "$15$"),
        ("$.5$", "$5$"),
        ("$f'(2)$", "$f(2)$"),
        ("$x^{12}$", "$x^12y$"),
        ("$x^{2y}$", "$x^{2}y$"),
        ("$\\sin x$", "$\\cos x$"),
        ("$x_1 2$", "$x_12$"),
        ("$a < b$", "$a > b$"),
        ("?", "$"),
    ],
)
def test_different_mathematics_stays_apart(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


@given(st.text())
def test_a_normalised_question_is_its_own_normal_form(question: str) -> None:
    assert normalise(question + " ") == normalise(question)
    assert words(question) and all(words(question + "x"))


def test_grams_are_windows_of_words_and_a_short_text_is_one() -> None:
    assert grams("a b c d e f g").size == 3 and grams("a b c").size == 1 and grams("a a a a a a a").size == 1
    assert jaccard(grams("a b c d e f g"), grams("x b c d e f g")) == 0.5
    assert jaccard(grams("a b"), grams("a c")) == 0.0 and jaccard(grams("A, b?"), grams("a b")) == 1.0


def test_the_rarest_grams_come_first() -> None:
    every = [np.array(grams_of, np.int64) for grams_of in ([7, 8], [7, 9], [7, 8, 9, 10])]
    assert [item.tolist() for item in rarest_first(every)] == [[8, 7], [9, 7], [10, 8, 9, 7]]
    assert rarest_first([]) == []


@given(
    st.lists(st.sets(st.integers(0, 12), min_size=1), max_size=15),
    st.sets(st.integers(0, 12), min_size=1),
    st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.8, 1.0]),
)
def test_the_index_finds_what_comparing_all_pairs_finds(sets: list[set[int]], probe: set[int], limit: float) -> None:
    index, ordered = NearIndex(limit), rarest_first([np.array(sorted(item), np.int64) for item in [*sets, probe]])
    for place, actual in enumerate(ordered[:-1]):
        index.add(place, actual)
    scores = [len(item & probe) / len(item | probe) for item in sets]
    best = max(scores, default=0.0)
    expected = (scores.index(best), best) if best >= limit else None
    assert index.best(ordered[-1]) == expected


@given(TEXTS, TEXTS, st.sampled_from([None, 0.3, 0.8]), st.booleans())
def test_what_is_left_holds_no_duplicate(
    questions: list[str], against: list[str], threshold: float | None, internal: bool
) -> None:
    actual = duplicates(questions, against, threshold, internal)
    left = [text for place, text in enumerate(questions) if place not in actual]
    assert duplicates(left, against, threshold, internal) == {}
    assert not {normalise(text) for text in left} & {normalise(text) for text in against}
    assert not internal or len({normalise(text) for text in left}) == len(left)
    every = [*against, *questions]
    for place, match in actual.items():
        same = normalise(questions[place]) == normalise(every[match.place])
        assert match.place < len(against) + place and same == (match.kind == "exact")
        assert same or jaccard(grams(questions[place]), grams(every[match.place])) == match.score >= (threshold or 2)


def test_a_long_question_with_one_word_changed_is_near_and_an_unrelated_one_is_not() -> None:
    (match,) = duplicates([LONG.replace("noon", "midday")], ["What is 2 + 2?", LONG], 0.8, True).values()
    assert (match.kind, match.place) == ("near", 1) and 0.8 <= match.score < 1
    assert duplicates([LONG.replace("noon", "midday"), LONG[:90]], [LONG], None, True) == {}
    assert duplicates([LONG[:90], "What is 3 + 2?"], ["What is 2 + 2?", LONG], 0.8, True) == {}


def test_the_first_of_several_matches_is_named() -> None:
    several = ["1+1?", "2+2?", "2 + 2", LONG, LONG + LONG[-9:], LONG]
    near = LONG.replace("noon", "midday")
    actual = duplicates(["2+2", near, "3+3", "3 + 3", "3+3."], several, 0.8, True)
    assert {place: match.place for place, match in actual.items()} == {0: 1, 1: 3, 3: 8, 4: 8}


def test_the_command_reports_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = LONG.replace("noon", "midday")
    own = ["Find $x$.", "1+1?", near, "2+2?", "find x", LONG.upper(), "3+3?", LONG.replace("four", "five") + " Why?"]
    file = write(tmp_path / "own.parquet", [*own, "2 + 2"])
    others = [write(tmp_path / "a.parquet", ["9?", "1 + 1"], "dapo"), write(tmp_path / "b.parquet", [LONG], "none")]
    out = tmp_path / "out.parquet"
    command = ["dedup", str(file), "--against", *map(str, others), "--out", str(out)]
    assert main(command) == 0
    assert kept(out) == [0, 3, 6]
    summary = "removed 6 (against others: exact 2, near 2; within FILE: exact 2, near 0)"
    assert f"read 9, written 3, {summary}" in capsys.readouterr().out
    lines = removed(out)
    assert [(line["row"], line["match"], line["matches"]["file"], line["matches"]["row"]) for line in lines] == [
        (2, "exact", str(others[0]), 2),
        (3, "near", str(others[1]), 1),
        (5, "exact", str(file), 1),
        (6, "exact", str(others[1]), 1),
        (8, "near", str(others[1]), 1),
        (9, "exact", str(file), 4),
    ]
    assert lines[1]["question"] == near and lines[1]["matches"]["question"] == LONG
    assert main([*command, "--exact"]) == 0 and kept(out) == [0, 2, 3, 6, 7]
    assert main([*command, "--exact", "--keep-internal"]) == 0 and kept(out) == [0, 2, 3, 4, 6, 7, 8]
    assert main([*command, "--threshold", "1"]) == 0 and kept(out) == [0, 2, 3, 6, 7]


def test_without_duplicates_the_file_stays_and_no_list_is_left(tmp_path: Path) -> None:
    file, out = write(tmp_path / "own.parquet", ["1+1?", "1+1"]), tmp_path / "out.parquet"
    assert main(["dedup", str(file), "--out", str(out)]) == 0 and kept(out) == [0]
    assert out.with_suffix(".removed.jsonl").exists()
    assert main(["dedup", str(out), "--out", str(out)]) == 0 and kept(out) == [0]
    assert not out.with_suffix(".removed.jsonl").exists()
    assert pq.read_schema(out) == pq.read_schema(file)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold", "0"], "--threshold=0.0"),
        (["--threshold", "80"], "--threshold=80.0"),
        (["--keep-internal"], "--keep-internal=True: nothing is left to compare"),
        (["--against", "{file}"], "all 1 rows are duplicates"),
        (["--against", "{file}x"], "cannot be read as parquet"),
    ],
)
def test_what_cannot_work_is_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path / "own.parquet", ["1+1?"]), tmp_path / "out.parquet"
    assert main(["dedup", str(file), "--out", str(out), *(text.format(file=file) for text in more)]) == 1
    assert message in capsys.readouterr().err and not out.exists()


def test_the_words_of_a_text_are_counted_once_each() -> None:
    assert Counter(words("a, b; A.")) == {"a": 2, "b": 1}
