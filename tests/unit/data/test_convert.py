"""`convert`: every known set from its raw columns, files in verl's format, and bad rows that are named and counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.config.errors import ConfigError
from opd_verl.data.__main__ import main
from opd_verl.data.files import make_table, replace_column, write_table
from opd_verl.data.rows import BadRow, answer_text
from opd_verl.data.sets import SETS
from opd_verl.data.source import read_file
from opd_verl.data.templates import TEMPLATES, fill

SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
GSM8K = {"question": "How many?", "answer": "3 * 4 = <<3*4=12>>1,212 eggs.\n#### 1,212", "idx": 7}
VERL = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "How many?" + SUFFIX.replace("{}", "{{}}")}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b"},
    "level": 3,
}
RAW: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "gsm8k": (GSM8K, "1212", "3 * 4 = 1,212 eggs.\n#### 1,212"),
    "math": (
        {"problem": "How many?", "solution": "So $\\boxed{1}$, then \\boxed{\\frac{1}{2}}.", "level": "Level 5"},
        "\\frac{1}{2}",
        "So $\\boxed{1}$, then \\boxed{\\frac{1}{2}}.",
    ),
    "math500": ({"problem": "How many?", "answer": "12", "solution": "It is 12.", "level": 2}, "12", "It is 12."),
    "dapo-math-17k": (VERL, "34", None),
    "deepmath": ({"question": "How many?", "final_answer": "e", "r1_solution_1": "It is e."}, "e", "It is e."),
    "openr1-math": (
        {
            "problem": "How many?",
            "answer": "4",
            "solution": "a person's",
            "generations": ["cut", "wrong", "right", "right too"],
            "correctness_math_verify": [True, False, True, True],
            "is_reasoning_complete": [False, True, True, True],
        },
        "4",
        "right",
    ),
    "aime24": ({"problem": "How many?", "answer": "033", "solution": "It is 33.", "id": 60}, "033", "It is 33."),
    "aime25": ({"problem": "How many?", "answer": "70", "id": "0"}, "70", None),
    "amc23": ({"id": 0, "problem": "How many?", "answer": 142.0, "url": "x"}, "142", None),
    "minerva": ({"question": "How many?", "answer": "1.6"}, "1.6", None),
    "olympiadbench": (
        {"question": "How many?", "final_answer": ["$1$", "$2$"], "solution": ["First.", "Other."]},
        "$1$,$2$",
        "First.",
    ),
}


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """The rows in the format that the suffix names."""
    if path.suffix == ".parquet":
        write_table(make_table(rows), path)
    else:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_every_known_set_has_its_raw_row_here() -> None:
    assert RAW.keys() == SETS.keys()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("name", RAW)
def test_a_raw_row_of_every_set(name: str, suffix: str, tmp_path: Path) -> None:
    raw, answer, solution = RAW[name]
    source, out = write_rows(tmp_path / f"raw{suffix}", [raw]), tmp_path / "new" / "out.parquet"
    assert main(["convert", name, "--source", str(source), "--out", str(out)]) == 0
    (row,) = rows_of(out)
    assert row["prompt"] == [{"role": "user", "content": "How many?" + SUFFIX}]
    assert row["reward_model"] == {"ground_truth": answer, "style": "rule"}
    assert row["data_source"] == raw.get("data_source", SETS[name].repo) and row["ability"].lower() == "math"
    info = row["extra_info"]
    assert info["question"] == "How many?" and info["template"] == TEMPLATES["boxed"]
    assert info.get("solution") == solution
    assert info["split"] == next(iter(SETS[name].splits)) and info["index"] == ("9a9b" if raw is VERL else "0")
    assert list(tmp_path.glob("new/*")) == [out]


def test_raw_columns_that_a_set_keeps_are_texts_and_verls_own_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    for name, kept in (("math", "Level 5"), ("math500", "2")):
        source = write_rows(tmp_path / "raw.jsonl", [RAW[name][0]])
        assert main(["convert", name, "--source", str(source), "--out", str(out)]) == 0
        assert rows_of(out)[0]["extra_info"]["level"] == kept
    assert main(["convert", str(write_rows(tmp_path / "verl.parquet", [VERL])), "--out", str(out)]) == 0
    assert rows_of(out)[0]["level"] == 3 and rows_of(out)[0]["data_source"] == "math_dapo"


@pytest.mark.parametrize("name", ["boxed", "dapo", "none", "Problem: {question}"])
def test_a_file_is_converted_to_any_template_and_from_it(name: str, tmp_path: Path) -> None:
    source, there, back = (tmp_path / f"{stem}.parquet" for stem in ("in", "there", "back"))
    write_rows(source, [VERL, {**VERL, "extra_info": {"index": "2", "split": "test"}}])
    assert main(["convert", str(source), "--template", name, "--out", str(there)]) == 0
    assert [row["prompt"][0]["content"] for row in rows_of(there)] == [fill(TEMPLATES.get(name, name), "How many?")] * 2
    assert [row["extra_info"]["split"] for row in rows_of(there)] == ["train", "test"]
    assert main(["convert", str(there), "--split", "test", "--out", str(back)]) == 0
    assert [row["prompt"][0]["content"] for row in rows_of(back)] == ["How many?" + SUFFIX] * 2
    assert [row["extra_info"]["split"] for row in rows_of(back)] == ["test", "test"]


def test_bad_rows_are_named_by_line_counted_and_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        GSM8K,
        '{"question": "cut off',
        {**GSM8K, "question": "  "},
        {**GSM8K, "answer": "none"},
        "",
        {**GSM8K, "question": SUFFIX},
        {**GSM8K, "question": 5},
        {"answer": "#### 1"},
        [1, 2],
        {**GSM8K, "question": "Last?"},
    ]
    source, out = write_rows(tmp_path / "raw.jsonl", lines), tmp_path / "out.parquet"
    source.write_bytes(source.read_bytes().replace(b"[1, 2]", b'[1, 2]\n{"question": "\xff"}').replace(b'""\n', b"\n"))
    assert main(["convert", "gsm8k", "--source", str(source), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    summary = "read 10, written 2, bad 8 (malformed JSON 2, empty question 2, wrong type 2, "
    assert shown.out.startswith(summary + "unparsable answer 1, missing column 1) -> ")
    bad = [json.loads(line) for line in (tmp_path / "out.bad.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in bad] == [
        (2, "malformed JSON"),
        (3, "empty question"),
        (4, "unparsable answer"),
        (6, "empty question"),
        (7, "wrong type"),
        (8, "missing column"),
        (9, "wrong type"),
        (10, "malformed JSON"),
    ]
    assert bad[2]["content"]["answer"] == "none" and "line 8: missing column: there is no 'question'" in shown.err
    assert [row["extra_info"]["question"] for row in rows_of(out)] == ["How many?", "Last?"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reward_model": {"ground_truth": " "}}, "no answer"),
        ({"reward_model": {"ground_truth": None}}, "no answer"),
        ({"reward_model": {"ground_truth": ["1"]}}, "wrong type"),
        ({"reward_model": "34"}, "wrong type"),
        ({"prompt": "How many?"}, "wrong type"),
        ({"prompt": [{"role": "user", "content": SUFFIX}]}, "empty question"),
        ({"extra_info": "x"}, "wrong type"),
    ],
)
def test_bad_rows_in_verls_format(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_rows(tmp_path / "raw.json", [VERL, {**VERL, **change}]), tmp_path / "out.parquet"
    assert main(["convert", str(source), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert f"row 2: {reason}: " in shown.err and f"read 2, written 1, bad 1 ({reason} 1)" in shown.out


def test_strict_writes_the_bad_rows_alone_and_a_later_run_clears_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_rows(tmp_path / "raw.jsonl", [GSM8K, "{"]), tmp_path / "out.parquet"
    command = ["convert", "gsm8k", "--source", str(source), "--out", str(out)]
    assert main([*command, "--strict"]) == 1
    assert "--strict=True: read 2, bad 1 (malformed JSON 1)" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.bad.jsonl", "raw.jsonl"]
    assert main([*command, "--strict", "--limit", "1"]) == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.parquet", "raw.jsonl"]


def test_only_the_first_twenty_bad_rows_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "raw.jsonl", [GSM8K, *["{"] * 30])
    assert main(["convert", "gsm8k", "--source", str(source), "--out", str(tmp_path / "out.parquet")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("line ") for line in lines) == 20 and any("all are in" in line for line in lines)
    assert len((tmp_path / "out.bad.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "neither a known set nor a file. Remedy: the sets are gsm8k"),
        (["nope", "--source", "{raw}"], "not a known set"),
        (["{raw}"], "no good row: read 1, bad 1 (not verl's format 1). Remedy: check the file, or name its data set"),
        (["gsm8k", "--source", "{raw}x"], "there is no such file"),
        (["gsm8k", "--source", "{folder}/x.csv"], "'.csv' is not one of .parquet, .jsonl, .json"),
        (["gsm8k", "--source", "{folder}/x.json"], "not JSON"),
        (["gsm8k", "--source", "{folder}/list.json"], "its top level is of type dict"),
        (["gsm8k", "--source", "{folder}/x.parquet"], "not a parquet file"),
        (["gsm8k", "--source", "{raw}", "--limit", "0"], "--limit=0"),
        (["gsm8k", "--source", "{raw}", "--template", "boxd"], "--template='boxd'"),
        (["aime25", "--split", "train"], "--split='train': aime25 has only test"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = write_rows(tmp_path / "raw.jsonl", [GSM8K]), tmp_path / "out.parquet"
    for name, text in (("x.csv", "1"), ("x.json", "{"), ("list.json", "{}"), ("x.parquet", "PAR")):
        (tmp_path / name).write_text(text)
    filled = [argument.format(raw=raw, folder=tmp_path) for argument in arguments]
    assert main(["convert", *filled, "--out", str(out)]) == 1
    assert message in capsys.readouterr().err and not out.exists()


def test_columns_of_several_types_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "raw.jsonl", [VERL, {**VERL, "level": "Level 5"}])
    assert main(["convert", str(source), "--out", str(tmp_path / "out.parquet")]) == 1
    assert "column='level': of several types" in capsys.readouterr().err


def test_the_output_must_be_parquet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "gsm8k", "--out", "out.jsonl"])
    assert "'out.jsonl' does not end in .parquet" in capsys.readouterr().err


def test_the_hub_is_asked_for_the_set_its_config_and_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(repo: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((repo, config, split))
        return [RAW["gsm8k" if config else "aime24"][0]]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for arguments in (["gsm8k", "--split", "test"], ["gsm8k"], ["aime24"]):
        assert main(["convert", *arguments, "--out", str(tmp_path / f"{len(asked)}.parquet")]) == 0
    aime = ("HuggingFaceH4/aime_2024", None, "train")
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train"), aime]
    splits = [rows_of(tmp_path / f"{run}.parquet")[0]["extra_info"]["split"] for run in range(3)]
    assert splits == ["test", "train", "test"]


def test_without_the_hub_the_remedy_is_a_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(repo: str, config: str | None, split: str) -> list[dict[str, Any]]:
        raise ConnectionError(f"Couldn't reach '{repo}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert main(["convert", "gsm8k", "--out", str(tmp_path / "out.parquet")]) == 1
    assert "Couldn't reach 'openai/gsm8k' on the Hub" in (shown := capsys.readouterr().err) and "--source" in shown


def test_converted_sets_can_be_read_together(tmp_path: Path) -> None:
    """verl concatenates the files of data.train_files: fields of one name must have one type."""
    loaded = []
    for name, (raw, _, _) in RAW.items():
        source, out = write_rows(tmp_path / f"{name}.jsonl", [raw]), tmp_path / f"{name}.parquet"
        assert main(["convert", name, "--source", str(source), "--out", str(out)]) == 0
        loaded.append(datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(tmp_path / "cache"))["train"])
    assert len(datasets.concatenate_datasets(loaded)) == len(RAW)


def test_features_noted_by_datasets_do_not_outlive_a_change(tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    datasets.Dataset.from_list([VERL]).to_parquet(str(source))
    assert b"huggingface" in (pq.read_schema(source).metadata or {})
    assert main(["template", str(source), "--template", "dapo", "--out", str(out)]) == 0
    assert not pq.read_schema(out).metadata
    (row,) = datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert row["extra_info"]["question"] == "How many?"


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text().filter(str.strip)))
def test_answers_keep_their_value(answer: float | str) -> None:
    text = answer_text(answer)
    assert text == answer.strip() if isinstance(answer, str) else float(text) == float(answer)


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "no answer"), (True, "wrong type"), ({}, "wrong type")])
def test_answers_that_are_none(value: Any, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        answer_text(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("$x=\\boxed 7$.", "7"), ("\\boxed 7 or \\boxed{8}", "8"), ("\\boxed{a_{1}}, not \\boxed{", "a_{1}")],
)
def test_boxes_of_math(solution: str, answer: str) -> None:
    assert SETS["math"].answer({"problem": "", "solution": solution}) == answer


def test_openr1_without_a_verified_generation_has_no_solution() -> None:
    raw = {**RAW["openr1-math"][0], "correctness_math_verify": [False, True, False, False]}
    assert SETS["openr1-math"].solution(raw) == "wrong"
    assert SETS["openr1-math"].solution({**raw, "correctness_math_verify": None}) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.parquet"
    write_table(make_table([{"a": 1}]), out)

    def fail(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(make_table([{"a": 2}]), out)
    assert list(tmp_path.iterdir()) == [out] and rows_of(out) == [{"a": 1}]


def test_tables_hold_every_column_and_type_those_without_a_value(tmp_path: Path) -> None:
    table = make_table([{"a": 1}, {"b": {"none": None, "empty": []}}])
    assert table.to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": {"none": None, "empty": []}}]
    write_table(replace_column(table, "a", [None, None]), tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.names == ["a", "b"] and schema.field("a").type == pa.string()
    assert {field.name: str(field.type) for field in schema.field("b").type} == {
        "none": "string",
        "empty": "list<element: string>",
    }
    with pytest.raises(ConfigError, match="column='a': of several types"):
        make_table([{"a": 1}, {"a": "x"}])


def test_large_files_come_in_batches_and_keep_their_order(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.parquet", [{"a": number} for number in range(2500)])
    assert list(read_file(path)) == [(number + 1, {"a": number}) for number in range(2500)]
