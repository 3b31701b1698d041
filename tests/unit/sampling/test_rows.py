"""Rows: what is read, what is refused and how, identities that order leaves alone, and prompts as verl encodes them."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sampling_harness import CONTEXT, problem, save_model, write_problems

from opd_verl.config.errors import ConfigError
from opd_verl.sampling.prompts import Model, check_lengths, encode, open_model
from opd_verl.sampling.rows import identities, read_rows, with_suffix
from opd_verl.sampling.settings import SamplingSettings

ASK = [{"role": "system", "content": "s"}, {"role": "user", "content": "why? "}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model("model", save_model(tmp_path_factory.mktemp("model")))


def test_parquet_and_jsonl_read_alike(tmp_path: Path) -> None:
    write_problems(tmp_path / "a.parquet", 3)
    lines = [json.dumps(problem(index)) for index in range(3)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    rows = [read_rows("files", [tmp_path / name]).to_pylist() for name in ("a.parquet", "b.jsonl")]
    assert rows[0] == rows[1] == [problem(index) for index in range(3)]
    assert len(read_rows("files", [tmp_path / "a.parquet", tmp_path / "b.jsonl"], limit=4)) == 4


def bad_columns(path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), path)


def text_prompt(path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "reward_model": [{"ground_truth": "1"}]}), path)


def no_truth(path: Path) -> None:
    pq.write_table(pa.table({"prompt": [ASK], "reward_model": [{"style": "rule"}]}), path)


def no_rows(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([problem(0)]).slice(1), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file.*opd_verl.data convert aime24 --out aime24.parquet"),
        (lambda path: path.write_text("PAR1"), "cannot be read"),
        (bad_columns, "no column prompt.*its columns: question, answer"),
        (text_prompt, "no column prompt"),
        (no_truth, r"no column reward_model\.ground_truth"),
        (no_rows, "has no rows"),
    ],
)
def test_files_that_cannot_be_used_are_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "aime24.parquet")
    with pytest.raises(ConfigError, match=f"benchmarks=.*{message}"):
        read_rows("benchmarks", [tmp_path / "aime24.parquet"])


def test_other_formats_and_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ConfigError, match=r"not a \.parquet or \.jsonl"):
        read_rows("files", [tmp_path / "x.csv"])
    write_problems(tmp_path / "a.parquet", 1)
    pq.write_table(pa.Table.from_pylist([problem(0) | {"extra_info": "none"}]), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="other types"):
        read_rows("files", [tmp_path / "a.parquet", tmp_path / "b.parquet"])
    with pytest.raises(ConfigError, match="limit=0"):
        read_rows("files", [tmp_path / "a.parquet"], 0)


def test_an_identity_depends_on_the_prompt_and_its_copies_alone() -> None:
    a, b = [{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]
    first, second, third = identities([a, b, a])
    assert len({first, second, third}) == 3, "a copy is another prompt"
    assert identities([b, a]) == [second, first]
    assert identities([a, a]) == [first, third]


def test_the_suffix_is_said_once_to_the_last_user() -> None:
    said = with_suffix(ASK, "Think.")
    assert said[-1]["content"] == "why? Think." and said[0] == ASK[0]
    assert with_suffix(said, "Think.") == said
    assert ASK[-1]["content"] == "why? ", "the row stays as it was"
    assert with_suffix(ASK, "") == ASK


def test_a_prompt_ends_with_the_assistants_header(model: Model) -> None:
    settings = SamplingSettings(suffix="w9", chat_template_kwargs={"hint": "w8"})
    assert encode(model.tokenizer, [{"role": "user", "content": "w7"}], settings) == [7, 9, 2, 8]


def test_a_prompt_that_does_not_fit_is_named(model: Model) -> None:
    prompts = [[1] * 3, [1] * 9, [1] * 5]
    check_lengths(model, prompts, SamplingSettings(max_tokens=CONTEXT - 9, max_prompt_tokens=9), "x")
    with pytest.raises(ConfigError, match=r"max_prompt_tokens=8: row 1 of x has a prompt of 9 tokens.*=9"):
        check_lengths(model, prompts, SamplingSettings(max_tokens=5, max_prompt_tokens=8), "x")
    with pytest.raises(ConfigError, match=f"max_tokens={CONTEXT - 8}:.*row 1 of x.*max_tokens={CONTEXT - 9}"):
        check_lengths(model, prompts, SamplingSettings(max_tokens=CONTEXT - 8), "x")
    with pytest.raises(ConfigError, match="leave the row out"):
        check_lengths(model, [[1] * CONTEXT], SamplingSettings(max_tokens=1), "x")


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    from tiny_models import save_tiny_qwen3

    with pytest.raises(ConfigError, match="no chat template"):
        open_model("model", save_tiny_qwen3(tmp_path / "m"))
    with pytest.raises(ConfigError, match=r"teacher=.*no such model folder"):
        open_model("teacher", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (SamplingSettings(n=0), "n"),
        (SamplingSettings(temperature=-1), "temperature"),
        (SamplingSettings(n=2, temperature=0), "temperature"),
        (SamplingSettings(top_p=0), "top_p"),
        (SamplingSettings(top_p=1.1), "top_p"),
        (SamplingSettings(top_k=-2), "top_k"),
        (SamplingSettings(max_tokens=0), "max_tokens"),
        (SamplingSettings(max_prompt_tokens=0), "max_prompt_tokens"),
        (SamplingSettings(prompts_per_shard=0), "prompts_per_shard"),
    ],
)
def test_settings_out_of_range_are_refused(settings: SamplingSettings, key: str) -> None:
    SamplingSettings(n=1, temperature=0).check()
    with pytest.raises(ConfigError) as error:
        settings.check()
    assert error.value.key == key
