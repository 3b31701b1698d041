"""From rows to a rollouts file: format, judging, and the same file whatever was killed on the way."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sampling_harness import FakeGenerate, answers, problem, save_model, write_problems

from opd_verl.config.errors import ConfigError
from opd_verl.data import rollouts as command
from opd_verl.sampling import judging
from opd_verl.sampling.judging import judge_response, load_reward
from opd_verl.sampling.rollouts import sample_rollouts
from opd_verl.sampling.settings import EngineSettings, RewardSettings, SamplingSettings
from opd_verl.sampling.shards import Request, Response

SETTINGS = SamplingSettings(n=3, max_tokens=16, prompts_per_shard=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("data") / "problems.parquet")


@pytest.fixture(scope="module")
def undisturbed(model: str, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out.parquet"
    return sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=FakeGenerate())


def test_the_file_has_the_sources_columns_and_ours(undisturbed: Path, problems: Path, model: str) -> None:
    rollouts = pq.read_table(undisturbed)
    source = pq.read_table(problems)
    assert rollouts.select(source.column_names) == source
    types = {field.name: field.type for field in rollouts.schema if field.name not in source.column_names}
    assert types == {
        "responses": pa.list_(pa.string()),
        "response_ids": pa.list_(pa.list_(pa.int32())),
        "response_tokens": pa.list_(pa.int64()),
        "finished": pa.list_(pa.bool_()),
        "scores": pa.list_(pa.float64()),
        "answers": pa.list_(pa.string()),
        "model": pa.string(),
    }
    assert set(rollouts["model"].to_pylist()) == {model}


def test_every_response_is_judged_by_its_own_row(undisturbed: Path) -> None:
    rows = pq.read_table(undisturbed).to_pylist()
    for row in rows:
        assert len(row["responses"]) == 3
        assert row["response_tokens"] == [len(ids) for ids in row["response_ids"]]
        for text, answer, score, finished in zip(
            row["responses"], row["answers"], row["scores"], row["finished"], strict=True
        ):
            assert text == (f"w3 \\boxed{{{answer}}}" if finished else "w3 and on")
            assert score == float(answer == row["reward_model"]["ground_truth"])
    scores = [score for row in rows for score in row["scores"]]
    assert 0 < sum(scores) < len(scores) and not all(row["finished"] == [True] * 3 for row in rows)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", range(4))
def test_killed_while_sampling(after: int, undisturbed: Path, model: str, problems: Path, tmp_path: Path) -> None:
    calls = iter(range(9))

    def sample(requests: Sequence[Request]) -> list[Response]:
        if next(calls) == after:
            raise Killed
        return answers(requests)

    out = tmp_path / "out.parquet"
    with pytest.raises(Killed):
        sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=FakeGenerate(sample))
    assert not out.exists()
    again = FakeGenerate()
    sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=again)
    assert again.asked == 3 * (7 - 2 * after)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_killed_while_judging_or_assembling(
    undisturbed: Path, model: str, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "out.parquet", judging._table
    calls = iter(range(9))

    def dies(*arguments: Any) -> pa.Table:
        if next(calls) == 2:
            raise Killed
        return table(*arguments)

    monkeypatch.setattr(judging, "_table", dies)
    with pytest.raises(Killed):
        sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=FakeGenerate())
    nothing_left = FakeGenerate()
    sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=nothing_left)
    assert nothing_left.asked == 0 and next(calls) == 5, "two shards were judged before, two after"
    assert out.read_bytes() == undisturbed.read_bytes()
    out.unlink()
    sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=nothing_left)
    assert nothing_left.asked == 0 and next(calls) == 6, "nothing was sampled or judged again"
    assert out.read_bytes() == undisturbed.read_bytes()


def test_a_finished_file_needs_nothing_and_no_parts(
    undisturbed: Path, model: str, problems: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(undisturbed.read_bytes())
    never = FakeGenerate()
    sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=never)
    assert never.asked == 0 and not (tmp_path / "out.parquet.parts").exists()


def test_other_settings_data_or_weights_begin_anew(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, problems = save_model(tmp_path / "model"), write_problems(tmp_path / "p.parquet")
    out = tmp_path / "out.parquet"

    def asked(settings: SamplingSettings, **more: Any) -> tuple[int, str]:
        generate = FakeGenerate()
        sample_rollouts(model, [problems], settings, out, workers=1, generate=generate, **more)
        return generate.asked, capsys.readouterr().err

    assert asked(SETTINGS)[0] == 21
    assert asked(SETTINGS)[0] == 0
    hotter = SamplingSettings(n=3, max_tokens=16, prompts_per_shard=2, temperature=0.5)
    count, message = asked(hotter)
    assert count == 21 and "(settings.temperature)" in message
    count, message = asked(hotter, limit=2)
    assert count == 6 and "(prompts)" in message
    save_model(tmp_path / "model", seed=1)
    count, message = asked(hotter, limit=2)
    assert count == 6 and "(model.files.model.safetensors)" in message
    pq.write_table(pa.Table.from_pylist([problem(0) | {"reward_model": {"ground_truth": "9"}}, problem(1)]), problems)
    count, message = asked(hotter, limit=2)
    assert count == 0 and "judged has other settings (rows)" in message, "another answer is judged anew"


def test_another_judge_judges_the_same_responses(model: str, problems: Path, tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(
        "async def grade(data_source, solution_str, ground_truth, extra_info):\n    return len(solution_str)\n"
    )
    out = tmp_path / "out.parquet"
    sample_rollouts(model, [problems], SETTINGS, out, workers=1, generate=FakeGenerate())
    first = pq.read_table(out)
    again = FakeGenerate()
    mine = RewardSettings(str(reward), "grade")
    sample_rollouts(model, [problems], SETTINGS, out, reward=mine, workers=1, generate=again)
    second = pq.read_table(out)
    assert again.asked == 0
    assert second["scores"].to_pylist() == [[len(text) for text in texts] for texts in first["responses"].to_pylist()]
    assert second.drop_columns(["scores"]) == first.drop_columns(["scores"]), "without `pred` the boxed answer counts"


def test_rewards_in_verls_conventions(tmp_path: Path) -> None:
    arguments = {"data_source": "", "solution_str": "\\boxed{4}", "ground_truth": "4", "extra_info": {}}
    assert judge_response((RewardSettings(), arguments)) == (1.0, "4")
    (tmp_path / "r.py").write_text("def a(**_):\n    return {'score': -1, 'pred': None}\n")
    assert judge_response((RewardSettings(str(tmp_path / "r.py"), "a"), arguments)) == (-1.0, "")
    for bad in (RewardSettings(name="nope"), RewardSettings(str(tmp_path / "none.py"))):
        with pytest.raises(ConfigError, match="reward="):
            load_reward(bad)


def test_rollouts_of_rollouts_replace_our_columns(undisturbed: Path, model: str, tmp_path: Path) -> None:
    once = SamplingSettings(n=1, max_tokens=16)
    out = sample_rollouts(model, [undisturbed], once, tmp_path / "b.parquet", workers=1, generate=FakeGenerate())
    assert pq.read_schema(out).names == pq.read_schema(undisturbed).names
    assert {len(row) for row in pq.read_table(out)["responses"].to_pylist()} == {1}


def test_the_command_hands_on_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("opd_verl.sampling.rollouts.sample_rollouts", lambda *given: seen.extend(given))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    line = "a.parquet b.jsonl --model M --out o.parquet --n 2 --temperature 0.5 --top-p 0.9 --top-k 20 --max-tokens 9"
    line += " --max-prompt-tokens 8 --seed 3 --suffix S --prompts-per-shard 5 --dtype bfloat16 --limit 4"
    line += " --tensor-parallel-size 2 --gpu-memory-utilization 0.5 --reward-path r.py --reward-name f --workers 1"
    command.run(parser.parse_args([*line.split(), "--chat-template-kwargs", '{"enable_thinking": false}']))
    files = [Path("a.parquet"), Path("b.jsonl")]
    settings = SamplingSettings(2, 0.5, 0.9, 20, 9, 3, "S", {"enable_thinking": False}, 8, 5)
    engine = EngineSettings("bfloat16", None, 2, 0.5)
    assert seen == ["M", files, settings, Path("o.parquet"), 4, engine, RewardSettings("r.py", "f"), 1]


def test_importing_the_package_loads_no_heavy_library() -> None:
    ours = "opd_verl.sampling.rollouts, opd_verl.data.rollouts, opd_verl.eval.run, opd_verl.eval.__main__"
    heavy = ("torch", "vllm", "verl", "transformers", "matplotlib")
    code = f"import sys, {ours}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
