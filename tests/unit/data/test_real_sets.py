"""The commands on the real sets in `shared/data`: `OPD_SHARED_DATA`, or the first `shared/data` above this file.

Without them these tests are skipped: test_convert.py and test_dedup.py run the same code on made files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from opd_verl.data.__main__ import COMMANDS, main
from opd_verl.data.files import read_table
from opd_verl.data.matching import duplicates
from opd_verl.data.prompts import questions
from opd_verl.data.templates import TEMPLATES, fill

SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
DOUBLED = SUFFIX.replace("{}", "{{}}")
VERL_FILES = {
    "train/dapo-math-17k.parquet": (17917, []),
    "train/deepmath-deduped.parquet": (14116, []),
    "train/math.parquet": (12000, [1166, 8126]),
    "eval/aime24.parquet": (30, []),
    "eval/aime25.parquet": (30, []),
    "eval/amc23.parquet": (83, []),
    "eval/math-500.parquet": (500, []),
    "eval/minerva.parquet": (272, []),
    "eval/olympiad-bench.parquet": (675, []),
}
"""Rows, and the numbers of those without an answer: (D) and (E) of two multiple-choice questions that name none."""


def find_shared() -> Path | None:
    places = [Path(named)] if (named := os.environ.get("OPD_SHARED_DATA")) else []
    places += [folder / "shared" / "data" for folder in Path(__file__).resolve().parents]
    return next((place for place in places if (place / "train").is_dir()), None)


SHARED = find_shared()


@pytest.fixture
def shared() -> Path:
    if SHARED is None:
        pytest.skip("no shared/data above this file, and OPD_SHARED_DATA does not name it")
    return SHARED


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("name", VERL_FILES)
def test_every_set_is_converted_whole(
    name: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, bad = VERL_FILES[name]
    out = tmp_path / "out.parquet"
    assert main(["convert", str(shared / name), "--out", str(out)]) == 0
    assert f"read {rows}, written {rows - len(bad)}, bad {len(bad)}" in capsys.readouterr().out
    aside = out.with_suffix(".bad.jsonl")
    actual = [json.loads(line) for line in aside.read_text().splitlines()] if bad else []
    assert [(row["row"], row["reason"]) for row in actual] == [(number, "no answer") for number in bad]
    before = [row for number, row in enumerate(rows_of(shared / name), start=1) if number not in bad]
    for old, new in zip(before, rows_of(out), strict=True):
        assert new["reward_model"] == {"style": "rule", "ground_truth": old["reward_model"]["ground_truth"].strip()}
        text = old["prompt"][-1]["content"].replace(DOUBLED, SUFFIX)
        assert text.count(SUFFIX) == 1 and text.endswith(SUFFIX)
        question = text.removesuffix(SUFFIX).strip()
        assert new["prompt"] == [{"role": "user", "content": question + SUFFIX}]
        assert new["extra_info"]["question"] == question
        assert new["extra_info"]["index"] == str(old["extra_info"]["index"])
        same = [key for key in old if key not in ("prompt", "reward_model", "extra_info")]
        assert [new[key] for key in same] == [old[key] for key in same]


def test_gsm8k_keeps_every_answer_and_solution(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = shared / "eval/gsm8k.jsonl", tmp_path / "out.parquet"
    assert main(["convert", "gsm8k", "--source", str(source), "--split", "test", "--out", str(out)]) == 0
    assert "read 1319, written 1319, bad 0 -> " in capsys.readouterr().out
    raw = [json.loads(line) for line in source.read_text().splitlines()]
    for old, new in zip(raw, rows_of(out), strict=True):
        answer = old["answer"].split("####")[1].strip().replace(",", "")
        assert new["reward_model"]["ground_truth"] == answer and answer.lstrip("-").replace(".", "").isdigit()
        assert new["prompt"][0]["content"] == old["question"].strip() + SUFFIX
        assert new["extra_info"]["split"] == "test" and "<<" not in new["extra_info"]["solution"]


@pytest.mark.parametrize("name", ["eval/math-500.parquet", "eval/minerva.parquet", "train/dapo-math-17k.parquet"])
def test_there_and_back_through_another_template(name: str, shared: Path, tmp_path: Path) -> None:
    start, there, back = (tmp_path / f"{stem}.parquet" for stem in ("start", "there", "back"))
    assert main(["convert", str(shared / name), "--limit", "3000", "--out", str(start)]) == 0
    assert main(["template", str(start), "--template", "dapo", "--out", str(there)]) == 0
    assert main(["template", str(there), "--template", "boxed", "--out", str(back)]) == 0
    assert rows_of(back) == rows_of(start)
    bare = questions(read_table(start), start)
    texts = [row["prompt"][-1]["content"] for row in rows_of(there)]
    assert texts == [fill(TEMPLATES["dapo"], question) for question in bare]


@pytest.mark.parametrize(
    ("name", "against", "removed"),
    [
        pytest.param(
            "train/deepmath-deduped",
            "train/dapo-math-17k",
            "against others: exact 0, near 0; within FILE: exact 80, near 51",
            marks=pytest.mark.by_hand,
        ),
        ("train/math", "eval/math-500", "against others: exact 0, near 27; within FILE: exact 9, near 78"),
    ],
)
def test_what_dedup_finds(
    name: str, against: str, removed: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    files = [str(shared / f"{name}.parquet"), "--against", str(shared / f"{against}.parquet")]
    assert main(["dedup", *files, "--out", str(out)]) == 0
    assert removed in capsys.readouterr().out
    assert main(["dedup", str(out), *files[1:], "--out", str(out)]) == 0
    assert "removed 0 " in capsys.readouterr().out


def test_injected_duplicates_are_found_among_unrelated_questions(shared: Path) -> None:
    path = shared / "train/dapo-math-17k.parquet"
    others = questions(read_table(path), path)
    long = [text for text in dict.fromkeys(others) if len(text.split()) > 60 and text.isascii()][:50]
    unrelated = [f"A made-up question about {place} blue whales who sing in {place + 7} voices?" for place in range(50)]
    near = [text.replace(" the ", " some ", 1) for text in long]
    exact = [f"  {text.upper()} " for text in long]
    actual = duplicates([*unrelated, *near, *exact], others, 0.8, internal=False)
    assert sorted(actual) == list(range(50, 150))
    assert {match.kind for place, match in actual.items() if place >= 100} == {"exact"}


def test_every_command_shows_a_complete_example() -> None:
    for name, command in COMMANDS.items():
        assert f"python -m opd_verl.data {name} " in (command.__doc__ or "") and "--out" in (command.__doc__ or "")


def test_the_module_runs_and_its_exit_status_says_how_it_went(tmp_path: Path) -> None:
    source, out = tmp_path / "raw.jsonl", tmp_path / "out.parquet"
    source.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": ""}\n')
    command = [sys.executable, "-m", "opd_verl.data", "convert", "gsm8k", "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"read 2, written 1, bad 1 (empty question 1) -> {out}\n")
    assert "line 2: empty question" in done.stderr
    refused = subprocess.run([*command, "--strict"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith("error: --strict=True: ")
