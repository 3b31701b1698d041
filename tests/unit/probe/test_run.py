"""A whole probe on tiny real models, around an engine that answers without one: files, verdicts, and going on."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from sampling_harness import FakeGenerate, answers, save_model, write_problems
from tiny_models import save_tiny_qwen3
from transformers import AutoModelForCausalLM

from opd_verl.config.errors import ConfigError
from opd_verl.metrics.meanings import MEANINGS
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.costs import wire_bytes
from opd_verl.probe.result import PairResult
from opd_verl.probe.run import probe
from opd_verl.probe.table import UNDEFINED
from opd_verl.probe.terminal import print_verdicts
from opd_verl.sampling import read
from opd_verl.sampling.generate import GenerationTask
from opd_verl.sampling.read import Reading

PROMPTS, N, K = 9, 2, 4


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProbeConfig:
    """A student before and after, and two teachers of which the second has another tokenizer."""
    monkeypatch.setattr(read, "run_child", lambda module, task, log: read.main(task, io.StringIO()))
    paths = {name: save_model(tmp_path / name, seed) for seed, name in enumerate(("student", "trained", "big"))}
    save_tiny_qwen3(tmp_path / "other", vocab_size=80)
    (tmp_path / "other" / "chat_template.jinja").write_text("w2")
    return ProbeConfig(
        student=paths["student"],
        after=paths["trained"],
        teacher=[paths["big"], f"other={tmp_path / 'other'}"],
        prompts=str(write_problems(tmp_path / "train.parquet", PROMPTS)),
        out=str(tmp_path / "out"),
        rollouts=PROMPTS,
        n=N,
        max_tokens=16,
        k=K,
        prompts_per_shard=4,
        resamples=100,
        samples=3,
        workers=1,
    )


def run(config: ProbeConfig) -> tuple[list[PairResult], FakeGenerate]:
    generate = FakeGenerate(answers)
    return probe(config, generate), generate


def test_everything_is_measured_and_written(config: ProbeConfig) -> None:
    results, _ = run(config)
    assert [(result.student, result.teacher) for result in results] == [
        ("before", "big"),
        ("after", "big"),
        ("before", "other"),
    ]
    record = json.loads((Path(config.out) / "probe.json").read_text())
    before, after, other = record["pairs"]
    assert other["verdict"]["verdict"] == "cannot distil" and "measurements" not in other
    assert any(not entry["ok"] and entry["fatal"] for entry in other["compatibility"])
    assert set(before["measurements"]) == set(MEANINGS) == set(after["measurements"])
    assert before["measurements"] != after["measurements"], "each student has its own rollouts"
    assert len(before["histograms"]["student"]) == 51 and [entry["k"] for entry in before["mass"]][:3] == [1, 2, 4]
    assert [entry["share"] for entry in before["continuation"]] == [0.25, 0.5, 0.75]
    assert sum(bucket["tokens"] for bucket in before["depth"]) == sum(before["histograms"]["student"])
    text = (Path(config.out) / "probe.md").read_text()
    assert "table 3" in text and "table 4" in text and "PROBLEM: tokenizer" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("| `")} == {6}, "no cell ends early"


def test_the_numbers_are_those_of_the_models(config: ProbeConfig) -> None:
    """Reverse KL, student entropy and overlap, against plain forward passes over the same rollouts."""
    results, _ = run(replace(config, after=None, continuation=[]))
    rows = pq.read_table(Path(config.out) / "rollouts" / "before.parquet").to_pylist()
    requests = pq.read_table(Path(config.out) / "rollouts" / "before.parquet.parts" / "requests.parquet").to_pylist()
    assert config.student is not None
    student, teacher = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                        for path in (config.student, config.teacher[0]))  # fmt: skip
    kls, entropies, overlaps = [], [], []
    for row, request in zip(rows, requests, strict=True):
        ids = torch.tensor([request["prompt_ids"] + row["response_ids"][0]])
        start = len(request["prompt_ids"]) - 1
        with torch.inference_mode():
            p, q = (model(ids).logits[0, start:-1].double().log_softmax(-1) for model in (student, teacher))
        sampled = torch.tensor(row["response_ids"][0])[:, None]
        kls.append((p - q).gather(-1, sampled)[:, 0])
        entropies.append(-(p.exp() * p).sum(-1))
        tops = [side.topk(K).indices for side in (p, q)]
        overlaps.append((tops[0][:, :, None] == tops[1][:, None]).any(-1).double().mean())
    measured = results[0].measured
    assert measured is not None
    values = {name: value.estimate.value for name, value in measured.values.items()}
    assert values["reverse_kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4)
    assert values["student_entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-4)
    assert values["overlap_ratio"] == pytest.approx(torch.stack(overlaps).mean().item(), rel=1e-6)
    right = [[score > 0.5 for score in row["scores"]] for row in rows]
    assert values["accuracy"] == pytest.approx(sum(row[0] for row in right) / PROMPTS), "the measured rollouts alone"
    assert values["student_accuracy"] == pytest.approx(sum(map(sum, right)) / (PROMPTS * N)), "all responses"


def test_the_second_time_nothing_is_asked_and_the_results_are_the_same(config: ProbeConfig) -> None:
    _, first = run(config)
    kept = {name: (Path(config.out) / name).read_bytes() for name in ("probe.json", "probe.md", "tokens.json")}
    _, second = run(config)
    assert first.asked == 3 * PROMPTS * N + 2 * 3 * PROMPTS and second.asked == 0
    assert kept == {name: (Path(config.out) / name).read_bytes() for name in kept}


def test_a_probe_that_was_killed_goes_on(config: ProbeConfig, tmp_path: Path) -> None:
    run(config)
    whole = json.loads((Path(config.out) / "probe.json").read_text())
    elsewhere = replace(config, out=str(tmp_path / "elsewhere"))

    def dies(work: GenerationTask) -> None:
        if "continuation" in str(work.parts[0].folder):
            raise KeyboardInterrupt
        FakeGenerate(answers)(work)

    with pytest.raises(KeyboardInterrupt):
        probe(elsewhere, dies)
    run(elsewhere)
    assert json.loads((tmp_path / "elsewhere" / "probe.json").read_text()) == whole


def test_what_the_teacher_continues_is_judged_with_the_students_prefix(config: ProbeConfig) -> None:
    run(replace(config, after=None, teacher=config.teacher[0]))
    rows = pq.read_table(Path(config.out) / "continuation" / "before-big.parquet").to_pylist()
    rollouts = pq.read_table(Path(config.out) / "rollouts" / "before.parquet").to_pylist()
    assert len(rows) == 3 * PROMPTS
    for place, row in enumerate(rows):
        share, item = config.continuation[place // PROMPTS], rollouts[place % PROMPTS]
        words = row["response_prefix"].split()
        expected = item["response_ids"][0][: math.floor(share * len(item["response_ids"][0]))]
        assert [int(word[1:]) for word in words] == expected
        assert row["reward_model"] == item["reward_model"]


def test_fewer_prompts_give_several_rollouts_each(config: ProbeConfig) -> None:
    results, _ = run(replace(config, after=None, teacher=config.teacher[0], rollouts=2 * PROMPTS - 3))
    measured = results[0].measured
    assert measured is not None and measured.values["response_length"].rollouts == 2 * PROMPTS - 3
    with pytest.raises(ConfigError, match=r"n=3, or rollouts=18"):
        run(replace(config, rollouts=2 * PROMPTS + 1))


def test_without_headroom_the_teachers_only_read(config: ProbeConfig) -> None:
    results, generate = run(replace(config, after=None, headroom=False, continuation=[]))
    assert generate.asked == PROMPTS * N and results[0].measured is not None
    assert "headroom" not in results[0].measured.values and results[0].continuation == []


def break_teacher(monkeypatch: pytest.MonkeyPatch, tokens: slice) -> None:
    """The teacher's log-probs of these tokens of every rollout become NaN."""
    column = Reading.column

    def broken(reading: Reading, name: str, width: int = 0) -> list[Any]:
        actual = [row.copy() for row in column(reading, name, width)]
        for row in actual if (reading.folder.name, name) == ("big", "log_prob") else []:
            row[tokens] = np.nan
        return actual

    monkeypatch.setattr(Reading, "column", broken)


def test_a_nan_of_the_teacher_is_masked_and_counted(config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, after=None, teacher=config.teacher[0])
    whole = run(config)[0][0].measured
    break_teacher(monkeypatch, slice(0, 1))
    some = run(config)[0][0].measured
    assert whole is not None and some is not None
    tokens = sum(bucket.tokens for bucket in whole.depth)
    assert whole.estimates["missing_share"].value == 0.0
    assert some.estimates["missing_share"].value == pytest.approx(PROMPTS / tokens)
    assert some.estimates["response_length"] == whole.estimates["response_length"]
    assert some.estimates["reverse_kl"] != whole.estimates["reverse_kl"]
    assert math.isfinite(some.estimates["reverse_kl"].value) and math.isfinite(some.estimates["q3_force"].value)


def test_a_teacher_of_nan_cannot_distil(config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_teacher(monkeypatch, slice(None))
    (nothing,), _ = run(replace(config, after=None, teacher=config.teacher[0]))
    assert nothing.measured is None and nothing.verdict.verdict == "cannot distil" and "NaN" in nothing.verdict.number


def test_tokens_add_up(config: ProbeConfig) -> None:
    run(config)
    rollouts = json.loads((Path(config.out) / "tokens.json").read_text())["rollouts"]
    assert len(rollouts) == 2 * 3
    for rollout in rollouts:
        assert rollout["mean_reward"] == pytest.approx(
            sum(token["reward"] for token in rollout["tokens"]) / len(rollout["tokens"]), abs=1e-3
        )
        for token in rollout["tokens"]:
            assert token["reward"] == pytest.approx(token["log_q"] - token["log_p"], abs=2e-4)
            assert (
                token["quadrant"]
                == {(1, 0): 1, (1, 1): 2, (0, 0): 3, (0, 1): 4}[token["reward"] > 0, token["student_entropy"] >= 0.3]
            )
            assert len(token["top"]) == K and [q for _, q in token["top"]] == sorted(
                (q for _, q in token["top"]), reverse=True
            )


def test_the_terminal_shows_verdict_and_remedy(config: ProbeConfig) -> None:
    results, _ = run(config)
    console = Console(record=True, width=80, file=io.StringIO())
    print_verdicts(results, config, console)
    printed = console.export_text()
    assert re.search(r"big: (gain expected|no headroom|regression risk)", printed) and "other: cannot distil" in printed
    assert max(map(len, printed.splitlines())) <= 80 and "probe.json" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": None}, "student=None: is not set"),
        ({"prompts": None}, "prompts=None: is not set"),
        ({"teacher": None}, "no path is given"),
        ({"temperature": 0.0, "n": 1}, "a sampled distribution, not greedy"),
        ({"rollouts": 1}, "at least 2"),
        ({"k": 97}, "the vocabulary has 96 tokens"),
        ({"continuation": [1.0]}, "not a share of a rollout"),
        ({"prompts": "nope.parquet"}, "no such file"),
        ({"student": "/nope"}, "no such model folder"),
        ({"max_tokens": 4096}, "exceeds the context"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    config: ProbeConfig, change: dict[str, Any], message: str
) -> None:
    generate = FakeGenerate(answers)
    with pytest.raises(ConfigError, match=message):
        probe(replace(config, **change), generate)
    assert generate.asked == 0


def test_a_teacher_named_as_a_student_is_refused(config: ProbeConfig) -> None:
    with pytest.raises(ConfigError, match="a student already has this name"):
        run(replace(config, teacher={"after": config.teacher[0]}))


def test_reasons_are_given_for_measurements_that_exist() -> None:
    assert set(UNDEFINED) <= set(MEANINGS)
    assert not any("|" in meaning.text for meaning in MEANINGS.values()), "a bar would end a cell of the table"


def test_bytes_of_a_top_k_are_those_on_the_wire() -> None:
    assert [wire_bytes(k) for k in (1, 16, 256)] == [13, 88, 1288]
