"""The README's first command, with fewer steps: models that meet the contract, and a table, a picture and a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e2e_runs import CONDITIONAL_NAMES, Steps, change, new_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_verl.metrics.names import METRICS
from opd_verl.quickstart.evaluate import distance, sample
from opd_verl.quickstart.models import load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.task import distinct_problems
from opd_verl.tracking.metrics_file import read_steps

STEPS = 8


@pytest.fixture(scope="module")
def quickstart(quickstart_folder: Path) -> tuple[Paths, str]:
    """Its folder, and what it printed. Run as a whole, the command also prepares the models that other tests share."""
    command = [sys.executable, "-m", "opd_verl.quickstart", "--steps", str(STEPS), "--out", str(quickstart_folder)]
    done = subprocess.run([*command, f"trainer.test_freq={STEPS}"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return Paths(quickstart_folder / "seed0", "opd_topk"), done.stdout


@pytest.fixture(scope="module")
def steps(quickstart: tuple[Paths, str]) -> Steps:
    """The metrics of its training."""
    return list(read_steps(quickstart[0].metrics))


def test_the_quickstart_ends_with_a_table_a_picture_and_a_model(quickstart: tuple[Paths, str]) -> None:
    paths, printed = quickstart
    result = json.loads(paths.table.read_text())
    assert result["teacher"]["accuracy"] >= 0.9 and result["before"]["accuracy"] < 0.4
    assert result["after"]["reverse_kl"] < result["before"]["reverse_kl"]
    for shown in (f"{result['after']['accuracy']:.1%}", "gap recovery rate", str(paths.picture.name)):
        assert shown in printed
    assert paths.picture.read_bytes().startswith(b"\x89PNG")
    page = (paths.report / "report.html").read_text()
    assert "report.html" in printed and all(f'id="{name}"' in page for name in ("reverse_kl", "dest_corr", "rho"))
    assert paths.log.stat().st_size > 0 and "step:1 - " not in printed, "verl's noise belongs in the log"


def test_reverse_kl_falls_and_reward_rises(steps: Steps) -> None:
    assert -change(steps, "opd/reverse_kl") > 0.3 and -change(steps, "actor/opd/divergence") > 0.3
    assert change(steps, "opd/reward_mean") > 0.3


def test_the_checkpoint_loads_into_hugging_face_and_is_closer_to_the_teacher(quickstart: tuple[Paths, str]) -> None:
    paths = quickstart[0]
    tokenizer = AutoTokenizer.from_pretrained(paths.distilled(STEPS))
    model = AutoModelForCausalLM.from_pretrained(paths.distilled(STEPS), dtype=torch.float32)
    assert model.config.model_type == "qwen3"
    before, teacher = load_model(paths.student), load_model(paths.teacher)
    problems = distinct_problems("heldout", 32, seed=0)

    def reverse_kl(student: torch.nn.Module) -> float:
        rollouts = sample(student, tokenizer, problems, samples=2)  # type: ignore[arg-type]
        return distance(student, teacher, rollouts, len(tokenizer)).reverse_kl  # type: ignore[arg-type]

    assert reverse_kl(model) < 0.8 * reverse_kl(before)


def test_validation_measures_accuracy(steps: Steps) -> None:
    keys = [key for key in steps[-1] if key.startswith("val-core/") and "/acc/" in key]
    assert keys and all(0.0 <= steps[-1][key] <= 1.0 for key in keys)


def test_every_token_is_scored_and_every_metric_documented(steps: Steps) -> None:
    assert all(step["opd/teacher_missing_share"] == 0.0 for step in steps)
    assert set(METRICS) <= new_metrics(steps) <= set(METRICS) | CONDITIONAL_NAMES


def test_the_teacher_scores_while_rollouts_are_still_being_generated(steps: Steps) -> None:
    shares = [step["opd/teacher_ready_share"] for step in steps[1:]]
    assert sorted(shares)[len(shares) // 2] > 0.5, shares
