"""The real `python -m opd_verl.eval` on trained models: real vLLM, real judge, and a kill in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from matplotlib import image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from opd_verl.config.overrides import hydra_value
from opd_verl.quickstart.paths import Paths

pytestmark = pytest.mark.by_hand

SECONDS = 300
PROBLEMS, SHARDS = 48, 12
TOKENS = 301
"""Ids of the tokenizer; the models' embeddings have 320 rows."""


def with_loud_padding(model: Path, copy: Path) -> Path:
    """A copy whose rows behind the tokenizer are digits, three times as loud: unless masked, they win everywhere."""
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    digits = [AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids(str(digit)) for digit in range(10)]
    for row in range(TOKENS, len(embeddings)):
        embeddings[row] = 3.0 * embeddings[digits[row % 10]]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def command(models: Paths, out: str) -> list[str]:
    """Student and teacher at a low temperature, at which the teacher is nearly always right."""
    return [
        *(sys.executable, "-m", "opd_verl.eval"),
        "models=[student]",
        f"benchmarks=[{hydra_value(models.data / 'heldout.parquet')}]",
        f"teacher={hydra_value(models.teacher)}",
        "before=student",
        f"out={out}",
        *("n=4", "temperature=0.3", "top_p=1.0", "max_tokens=64", "suffix=''"),
        *(f"limit={PROBLEMS}", f"prompts_per_shard={PROBLEMS // SHARDS}", "entropy_responses=32"),
    ]


def evaluate(models: Paths, cwd: Path, out: str) -> dict[str, Any]:
    done = subprocess.run(command(models, out), cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{out}: table.md, table.json" in done.stdout and "WARNING" not in done.stdout
    return json.loads((cwd / out / "table.json").read_text())


def kill_after_first_shard(models: Paths, cwd: Path, out: str) -> None:
    parts = cwd / out / "rollouts" / "student" / "heldout.parquet.parts"
    log = (cwd / "killed.log").open("w")
    run = subprocess.Popen(command(models, out), cwd=cwd, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not (parts / "shard-00000.parquet").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert 1 <= len(list(parts.glob("shard-*.parquet"))) < SHARDS, "killed in the middle"


def test_the_table_survives_a_kill(models: Paths, tmp_path: Path) -> None:
    with_loud_padding(models.student, tmp_path / "student")
    table = evaluate(models, tmp_path, "whole")
    assert sorted(os.listdir(tmp_path)) == ["student", "whole"], "Hydra leaves nothing behind"
    student, teacher = table["rows"]
    assert (student["model"], teacher["model"]) == ("student", "teacher")
    assert teacher["accuracy"]["low"] > student["accuracy"]["high"]
    assert teacher["accuracy"]["value"] > 0.5
    assert student["entropy"]["mean"] > teacher["entropy"]["mean"] > 0.0
    for row in table["rows"]:
        values = [row["pass_at"][k]["value"] for k in ("1", "2", "4")]
        assert row["accuracy"]["value"] == values[0] and values == sorted(values)
        assert row["truncated"] < 0.1 and row["entropy"]["responses"] == 32
        rollouts = pq.read_table(tmp_path / "whole" / "rollouts" / row["model"] / "heldout.parquet")
        ids = [token for group in rollouts["response_ids"].to_pylist() for response in group for token in response]
        assert max(ids) < TOKENS, "no row that pads the vocabulary"
    for picture in ("pass_at_k.png", "entropy.png"):
        assert image.imread(tmp_path / "whole" / picture).std() > 0.05

    for kind in ("rollouts", "entropy"):  # the teacher is finished; the student begins anew
        shutil.copytree(tmp_path / "whole" / kind / "teacher", tmp_path / "killed" / kind / "teacher")
    kill_after_first_shard(models, tmp_path, "killed")
    evaluate(models, tmp_path, "killed")
    assert (tmp_path / "killed" / "table.json").read_bytes() == (tmp_path / "whole" / "table.json").read_bytes()
