"""`subsets`, `contexts` and `sft`: what is made of judged rollouts."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.data.__main__ import main
from opd_verl.data.contexts import fill, finished_texts
from opd_verl.data.files import make_table, write_table
from opd_verl.data.judged import Judged
from opd_verl.data.subsets import SUBSETS, split, verdict
from opd_verl.data.templates import TEMPLATES
from opd_verl.data.templates import fill as fill_template
from opd_verl.quickstart.tokenizer import build_tokenizer

Score = float | None
SCORES = st.sampled_from([1.0, 0.0, None])
VERDICTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=1), st.sampled_from([True, False, None]))


def prompt_row(question: str, template: str = "boxed", **extra_info: Any) -> dict[str, Any]:
    return {
        "data_source": "made",
        "prompt": [{"role": "user", "content": fill_template(TEMPLATES[template], question)}],
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"split": "train", "question": question, **extra_info},
    }


def rollout_row(
    question: str, scores: list[Score], finished: list[bool] | None = None, name: str = "m", **more: Any
) -> dict[str, Any]:
    """Responses `<name>-<question>-<place>`."""
    return {
        **prompt_row(question, **more),
        "responses": [f"{name}-{question}-{place}" for place in range(len(scores))],
        "response_ids": [[1, 2]] * len(scores),
        "response_tokens": [2] * len(scores),
        "finished": [True] * len(scores) if finished is None else finished,
        "scores": scores,
        "answers": ["1"] * len(scores),
        "model": name,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(make_table(rows), path)
    return path


def questions(path: Path) -> list[str]:
    return [info["question"] for info in pq.read_table(path)["extra_info"].to_pylist()]


@pytest.mark.parametrize(
    ("scores", "at_least", "expected"),
    [
        ([0.0, 0.0, 1.0, 0.0], 1, True),
        ([0.0, 0.0, 1.0, 0.0], 2, False),
        ([0.0] * 4, 1, False),
        ([0.0, None], 1, None),
        ([1.0, None], 1, True),
        ([1.0, None], 2, None),
        ([1.0, None], 3, False),
        ([], 1, False),
    ],
)
def test_a_verdict_needs_the_rollouts_that_decide_it(scores: list[Score], at_least: int, expected: bool | None) -> None:
    assert verdict(scores, at_least) is expected


@given(st.lists(VERDICTS, min_size=1, max_size=3))
def test_the_subsets_partition_the_prompts_of_all_teachers(verdicts: list[dict[str, bool | None]]) -> None:
    actual = split(verdicts)
    everyone = set.union(*(set(teacher) for teacher in verdicts))
    members = [key for keys in actual.values() for key in keys]
    assert sorted(members) == sorted(everyone)
    matched = [key for key in everyone if all(teacher.get(key) is not None for teacher in verdicts)]
    assert sorted(key for name in SUBSETS for key in actual[name]) == sorted(matched)
    for name, sought in (("both_correct", {True}), ("both_wrong", {False}), ("mixed", {True, False})):
        assert all({teacher[key] for teacher in verdicts} == sought for key in actual[name])


def test_subsets_are_written_without_the_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [
        rollout_row("right", [0.0, 1.0]),
        rollout_row("wrong", [0.0, 0.0]),
        rollout_row("either", [1.0, 1.0]),
        rollout_row("open", [0.0, None]),
        rollout_row("alone", [1.0, 1.0]),
        rollout_row("wrong again", [0.0, 0.0]),
        rollout_row("twice", [1.0], index="first"),
        rollout_row("twice", [0.0], index="second"),
    ]
    second = [
        rollout_row("twice", [1.0]),
        *(rollout_row(name, [0.0, 0.0], template="dapo") for name in ("wrong", "either", "open", "wrong again")),
        rollout_row("right", [1.0, 0.0]),
        rollout_row("other", [1.0]),
    ]
    files = [write(tmp_path / f"{place}.parquet", rows) for place, rows in enumerate([first, second])]
    command = ["subsets", "--rollouts", *map(str, files), "--out-dir", str(tmp_path / "out")]
    assert main(command) == 0
    actual = {name: questions(tmp_path / "out" / f"{name}.parquet") for name in SUBSETS}
    assert actual == {
        "both_correct": ["right", "twice"],
        "both_wrong": ["wrong", "wrong again"],
        "mixed": ["either"],
    }
    summary = "read 8 rows of 7 prompts: both_correct 2, both_wrong 2, mixed 1, unjudged 1, missing 2 -> "
    assert summary in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out" / "both_correct.parquet")["extra_info"].to_pylist()[1]["index"] == "first"
    columns = pq.read_schema(tmp_path / "out" / "mixed.parquet").names
    assert columns == ["data_source", "prompt", "reward_model", "extra_info"]
    assert main([*command, "--at-least", "2"]) == 0
    assert questions(tmp_path / "out" / "both_correct.parquet") == []


def test_equal_sizes_are_drawn_by_seed_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{letter}{place}" for place in range(30) for letter in "rw"]
    rows = [rollout_row(name, [float(name[0] == "r")], index=place) for place, name in enumerate(names)]
    file = write(tmp_path / "rollouts.parquet", rows)

    def drawn(size: int, seed: int) -> list[list[str]]:
        command = ["subsets", "--rollouts", str(file), str(file), "--out-dir", str(tmp_path), "--key", "index"]
        assert main([*command, "--size", str(size), "--seed", str(seed)]) == (size > 30 or size < 1)
        return [questions(tmp_path / f"{name}.parquet") for name in SUBSETS[:2]]

    once = drawn(10, 0)
    assert [len(set(item)) for item in once] == [10, 10] and {name[0] for name in once[0]} == {"r"}
    assert all(item == sorted(item, key=names.index) for item in once)
    assert drawn(10, 0) == once != drawn(10, 1)
    assert drawn(30, 0) == [names[::2], names[1::2]]
    drawn(31, 0)
    assert "--size=31: both_correct has 30 prompts" in capsys.readouterr().err
    drawn(0, 0)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([rollout_row("a", [0.5])], [], "row 1 has the scores [0.5]. Remedy: 1.0 is correct"),
        ([rollout_row("a", [1.0]), rollout_row("b", [1.0], [True, False])], [], "row 2 holds {'finished': 2, 'scores'"),
        ([{**rollout_row("a", [1.0]), "scores": None}], [], "'scores': None"),
        ([prompt_row("a")], [], "lacks the columns finished, scores. Remedy: "),
        ([rollout_row("a", [1.0])], ["--at-least", "0"], "--at-least=0"),
        ([rollout_row("a", [1.0])], ["--key", "index"], "extra_info.index None does not name one row"),
        ([rollout_row(name, [1.0], index=1) for name in "ab"], ["--key", "index"], "extra_info.index 1 does not name"),
    ],
)
def test_rollouts_that_cannot_be_used_are_refused(
    rows: list[dict[str, Any]], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rollouts.parquet", rows)
    assert main(["subsets", "--rollouts", str(file), "--out-dir", str(tmp_path / "out"), *more]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_only_finished_texts_of_the_score_count_in_their_order() -> None:
    judged = Judged(["cut", "a", " ", "b", "x", "?", "a"], [False, *[True] * 6], [1.0, 1.0, 1.0, 1.0, 0.0, None, 1.0])
    assert finished_texts(judged, 1.0) == ["a", "b", "a"] and finished_texts(judged, 0.0) == ["x"]
    files = [{}, {"k": judged}, {"k": Judged(["c", "y"], [True, True], [1.0, 0.0])}]
    assert fill("k", files, None, 9, 1, "") == {"correct": ["a", "b", "c"], "wrong": ["x"]}
    assert fill("k", files, "b", 2, 9, "") == {"correct": ["b", "a"], "wrong": ["x", "y"]}
    assert fill("none", files, None, 1, 1, "_s") == {"correct_s": [], "wrong_s": []}


@given(st.lists(st.tuples(SCORES, st.booleans()), max_size=8), st.integers(0, 4), st.integers(0, 4))
def test_a_row_has_at_most_what_is_asked_and_all_there_is(
    rollouts: list[tuple[Score, bool]], correct: int, wrong: int
) -> None:
    judged = Judged([f"r{place}" for place in range(len(rollouts))], [f for _, f in rollouts], [s for s, _ in rollouts])
    actual = fill("k", [{"k": judged}], None, correct, wrong, "")
    for name, score, most in (("correct", 1.0, correct), ("wrong", 0.0, wrong)):
        places = [place for place, rollout in enumerate(rollouts) if rollout == (score, True)]
        assert actual[name] == [f"r{place}" for place in places[:most]]


def test_contexts_are_what_the_teacher_s_context_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [prompt_row("a", index="7", solution="book"), prompt_row("b", solution=None), prompt_row("c")]
    file = write(tmp_path / "in.parquet", rows)
    item = write(
        tmp_path / "1.parquet",
        [rollout_row("b", [0.0, 1.0, 1.0]), rollout_row("a", [0.0, 1.0], [False, True], template="dapo")],
    )
    two = write(tmp_path / "2.parquet", [rollout_row("a", [1.0, 0.0], name="big")])
    out = tmp_path / "out.parquet"
    command = ["contexts", str(file), "--rollouts", str(item), str(two), "--out", str(out)]
    assert main(command) == 0
    infos = pq.read_table(out)["extra_info"].to_pylist()
    assert [(info["correct"], info["wrong"]) for info in infos] == [
        (["m-a-1", "big-a-0"], ["big-a-1"]),
        (["m-b-1", "m-b-2"], ["m-b-0"]),
        ([], []),
    ]
    assert "read 3, without rollouts 1, removed 0, written 3 with 4 correct and 2 wrong" in capsys.readouterr().out
    assert infos[0]["index"] == "7" and not out.with_suffix(".removed.jsonl").exists()

    assert main([*command, "--use-solution", "--needs", "3c"]) == 0
    (row,) = pq.read_table(out).to_pylist()
    assert row["extra_info"]["correct"] == ["book", "m-a-1", "big-a-0"]
    assert CONTEXT_HOOKS["3c"](row).index("book") < CONTEXT_HOOKS["3c"](row).index("big-a-0")
    assert "removed 2, written 1 with 3 correct and 1 wrong" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.with_suffix(".removed.jsonl").read_text().splitlines()]
    assert [(line["row"], line["question"]) for line in lines] == [(2, "b"), (3, "c")]
    assert "needs 3 texts in extra_info.correct" in lines[0]["reason"] and "has 2" in lines[0]["reason"]


def test_summaries_have_lists_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [prompt_row("a"), prompt_row("b")])
    rollouts = write(tmp_path / "r.parquet", [rollout_row("a", [1.0, 0.0]), rollout_row("b", [1.0, 0.0])])
    short = write(tmp_path / "s.parquet", [rollout_row("a", [1.0, 0.0], name="short")])
    out = tmp_path / "out.parquet"
    command = ["contexts", str(file), "--rollouts", str(rollouts), "--out", str(out)]
    assert main([*command, "--summaries", str(short), "--needs", "sum_1c1w"]) == 0
    (row,) = pq.read_table(out).to_pylist()
    assert "short-a-0" in (text := CONTEXT_HOOKS["sum_1c1w"](row)) and "short-a-1" in text and "m-a-0" not in text
    assert row["extra_info"]["correct"] == ["m-a-0"]
    assert main(command) == 0
    assert "correct_summaries" not in pq.read_table(out)["extra_info"].to_pylist()[0]


def test_a_larger_models_solutions_have_a_list_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [prompt_row("a"), prompt_row("b")])
    rollouts = write(tmp_path / "r.parquet", [rollout_row("a", [1.0, 0.0]), rollout_row("b", [1.0, 0.0])])
    large = write(tmp_path / "l.parquet", [rollout_row("b", [0.0, 1.0, 1.0], name="big"), rollout_row("a", [0.0])])
    out = tmp_path / "out.parquet"
    command = ["contexts", str(file), "--rollouts", str(rollouts), "--out", str(out)]
    assert main([*command, "--large", str(large)]) == 0
    infos = pq.read_table(out)["extra_info"].to_pylist()
    assert [info["correct_large"] for info in infos] == [[], ["big-b-1", "big-b-2"]]
    assert [info["correct"] for info in infos] == [["m-a-0"], ["m-b-0"]] and "wrong_large" not in infos[0]
    assert main([*command, "--large", str(large), "--needs", "1c_large"]) == 0
    (row,) = pq.read_table(out).to_pylist()
    text = CONTEXT_HOOKS["1c_large"](row)
    assert "big-b-1" in text and "big-b-2" not in text and "m-b" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--needs", "3c"], "--needs='3c': no row of {file} has enough texts (1 of 2 have no rollouts)"),
        (["--correct", "-1"], "--correct/--wrong=(-1, 1)"),
        (["--use-solution"], "no row of {file} has extra_info.solution"),
    ],
)
def test_contexts_that_cannot_be_filled_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "in.parquet", [prompt_row("a"), prompt_row("b")])
    rollouts, out = write(tmp_path / "r.parquet", [rollout_row("a", [1.0])]), tmp_path / "out.parquet"
    assert main(["contexts", str(file), "--rollouts", str(rollouts), "--out", str(out), *more]) == 1
    assert message.format(file=file) in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("more", "left", "summary"),
    [
        ([], [0, 1, 2, 3], "written 4, left out 1 (empty 1)"),
        (["--only-finished"], [0, 1, 3], "written 3, left out 2 (not finished 1, empty 1)"),
        (["--only-correct"], [0, 2], "written 2, left out 3 (wrong 1, not judged 1, empty 1)"),
        (
            ["--only-correct", "--only-finished"],
            [0],
            "written 1, left out 4 (wrong 1, not finished 1, not judged 1, empty 1)",
        ),
    ],
)
def test_sft_rows_are_the_wanted_responses(
    more: list[str], left: list[int], summary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rollout_row("a", [1.0, 0.0, 1.0, None, 1.0], [True, True, False, True, True], index="7")
    row["responses"][4] = "\n"
    file, out = write(tmp_path / "r.parquet", [row]), tmp_path / "sft.parquet"
    assert main(["sft", str(file), "--out", str(out), *more]) == 0
    rows = pq.read_table(out).to_pylist()
    answers = [{"role": "assistant", "content": f"m-a-{place}"} for place in left]
    assert [item["messages"] for item in rows] == [[*row["prompt"], answer] for answer in answers]
    assert set(rows[0]) == {"data_source", "reward_model", "extra_info", "model", "messages"}
    assert rows[0]["extra_info"]["index"] == "7" and rows[0]["model"] == "m"
    shown = capsys.readouterr()
    assert f"read 5 responses to 1 prompts, {summary}" in shown.out
    assert ("warning: 1 responses were cut" in shown.err) == (2 in left)


def test_sft_without_a_response_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "r.parquet", [rollout_row("a", [0.0, None])]), tmp_path / "sft.parquet"
    assert main(["sft", str(file), "--out", str(out), "--only-correct"]) == 1
    assert "no response is left: left out 2 (wrong 1, not judged 1)" in capsys.readouterr().err and not out.exists()


def test_verls_sft_data_set_trains_on_the_response_alone(tmp_path: Path) -> None:
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    system = {"role": "system", "content": "Add."}
    rows = [rollout_row("What is 12 + 34?", [1.0, 1.0]), rollout_row("And 5 + 6?", [1.0])]
    rows = [{**row, "prompt": [system, *row["prompt"]]} for row in rows]
    file, out = write(tmp_path / "r.parquet", rows), tmp_path / "sft.parquet"
    assert main(["sft", str(file), "--out", str(out)]) == 0
    actual = MultiTurnSFTDataset(str(out), tokenizer, OmegaConf.create({"pad_mode": "no_padding", "max_length": 512}))
    assert len(actual) == 3
    for place, (row, response) in enumerate([(0, 0), (0, 1), (1, 0)]):
        sample = actual[place]
        learnt = tokenizer.decode(sample["input_ids"][sample["loss_mask"].bool()])
        assert learnt == f"{rows[row]['responses'][response]}<|im_end|>\n"
        whole = tokenizer.decode(sample["input_ids"])
        assert whole.startswith("<|im_start|>system\nAdd.") and rows[row]["prompt"][-1]["content"] in whole


def test_verls_rl_data_set_reads_converted_files_of_several_sets(tmp_path: Path) -> None:
    from verl.utils.dataset.rl_dataset import RLHFDataset

    raw = {"gsm8k": {"question": "1+1?", "answer": "#### 2"}, "aime25": {"problem": "2+2?", "answer": "4", "id": "0"}}
    for name, row in raw.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        source, out = str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}.parquet")
        assert main(["convert", name, "--source", source, "--out", out]) == 0
    settings = {"cache_dir": str(tmp_path / "cache"), "max_prompt_length": 512, "filter_overlong_prompts_workers": 1}
    files = [str(tmp_path / f"{name}.parquet") for name in raw]
    datasets.disable_progress_bars()
    actual = RLHFDataset(files, build_tokenizer(tmp_path / "tokenizer"), OmegaConf.create(settings))
    assert [actual[place]["raw_prompt"][0]["content"][:4] for place in range(2)] == ["1+1?", "2+2?"]
    assert [actual[place]["reward_model"]["ground_truth"] for place in range(2)] == ["2", "4"]
    assert [actual[place]["extra_info"]["split"] for place in range(2)] == ["train", "test"]


def test_rollouts_from_pandas_and_from_arrow_are_the_same(tmp_path: Path) -> None:
    row = rollout_row("a", [1.0, 0.0])
    file, other = write(tmp_path / "r.parquet", [row]), tmp_path / "p.parquet"
    frame = pq.read_table(file).to_pandas()
    frame["scores"] = [np.array([1.0, 0.0])]
    pq.write_table(pa.Table.from_pandas(frame), other)
    outs = []
    for source in (file, other):
        out = tmp_path / f"sft-{source.name}"
        assert main(["sft", str(source), "--out", str(out)]) == 0
        outs.append(pq.read_table(out).to_pylist())
    assert outs[0] == outs[1]
