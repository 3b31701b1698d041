"""The benchmark of the student step at a tiny size: everyone computes the same loss, and the table says so."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from places import TESTS

FOLDER = TESTS / "benchmarks"
TINY = ["--tokens", "32", "--vocabulary", "512", "--hidden", "16", "--repeats", "1", "--threads", "1"]
LIMITS = {"float32": 1e-5, "bfloat16": 0.05}
ERRORS = ("loss err", "dH err", "dW err")


@pytest.fixture
def student_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import student_step  # type: ignore[import-not-found]  # found through the path set above

    return student_step


def run(out: Path, *options: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """The script's measurement rows by (variant, dtype, T)."""
    command = [sys.executable, str(FOLDER / "student_step.py"), *TINY, *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = out.read_text()
    assert report in done.stdout and "## Budgets" in report
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    header = rows[0]
    actual = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return {(row["variant"], row["dtype"], row["T"]): row for row in actual}


def test_every_variant_agrees_with_float64(tmp_path: Path) -> None:
    ours = ["ours", "ours_recompute", "ours_full", "plain", "plain_full", "floor", "floor_full"]
    peers = ["verl", "verl_chunked", "trl", "liger"]
    rows = run(tmp_path / "table.md", "--memory-tokens", "--only", *ours, *peers)
    for text in (
        "ours: fused_support_loss",
        "ours: fused_log_probs, no diagnostics",
        "verl, default",
        "verl, use_chunked_topk",
        "ours: fused_full_divergence",
    ):
        for dtype, limit in LIMITS.items():
            row = rows[text, dtype, "32"]
            assert max(float(row[column]) for column in ERRORS) <= limit, row
            assert float(row["median s"]) >= 0.0
    for text in ("TRL generalized_jsd_loss", "Liger, not compiled"):
        row = rows[text, "float32", "32"]
        assert row["median s"] == "not installed" or max(float(row[column]) for column in ERRORS) <= 1e-5
    assert rows["floor: 3 matrix products", "float32", "32"]["dW err"] == "-"


def test_peak_memory_grows_with_all_logits(tmp_path: Path) -> None:
    sizes = ["--vocabulary", "20000", "--dtype", "float32", "--memory-tokens", "1024"]
    row = run(tmp_path / "table.md", *sizes, "--only", "plain")["plain path, autograd", "float32", "1024"]
    logits_mib = 1024 * 20000 * 4 / 2**20
    assert 2 * logits_mib <= float(row["peak MiB"]) <= 6 * logits_mib
    assert row["median s"] == "-"


def test_another_loss_is_refused(student_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    variants: dict[str, Any] = student_step.VARIANTS
    args = argparse.Namespace(vocabulary=64, hidden=8, k=4, device="cpu")
    assert student_step.check("plain_full", "float32", args) is not None
    monkeypatch.setitem(variants, "plain_full", replace(variants["plain_full"], prepare=variants["plain"].prepare))
    with pytest.raises(ValueError, match="not the same loss"):
        student_step.check("plain_full", "float32", args)


def test_reference_is_the_mean_divergence(student_step: ModuleType) -> None:
    inputs = student_step.make_inputs(student_step.Shape(3, 20, 4, 5), torch.float32, torch.device("cpu"))
    logits = inputs.hidden_TH.detach().double() @ inputs.weight_VH.detach().double().t()
    teacher = inputs.teacher_hidden_TH.double() @ inputs.teacher_weight_VH.double().t()
    p, q = (x.exp() / x.exp().sum(-1, keepdim=True) for x in (logits, teacher))
    reverse = sum((p[t, v] * (p[t, v] / q[t, v]).log()).item() for t in range(3) for v in range(20)) / 3
    ids = [q[t].argsort(descending=True)[:5].tolist() for t in range(3)]
    forward = sum((q[t, v] * (q[t, v] / p[t, v]).log()).item() for t in range(3) for v in ids[t]) / 3
    assert student_step.reference(inputs, "B").loss.item() == pytest.approx(reverse, rel=1e-9)
    assert student_step.reference(inputs, "A").loss.item() == pytest.approx(forward, rel=1e-5)
    assert inputs.ids_TK.tolist() == ids


def test_table_ratios_and_verdicts(student_step: ModuleType) -> None:
    key, results = student_step.Key, student_step.Results()
    results.seconds.update({key("ours", "float32", 8): [2.0, 1.0, 3.0], key("verl", "float32", 8): [4.0, 4.0, 5.0]})
    results.peaks.update({key("ours", "float32", 8): 2**20, key("verl", "float32", 8): "out of memory"})
    results.errors.update({("ours", "float32"): (0.0, 2e-5, 0.0)})
    plan = [key(name, "float32", 8) for name in ("ours", "verl")]
    report = student_step.markdown(results, plan, "cpu", "# title")
    assert "| ours: fused_support_loss | float32 | 8 | 2.000 | 100% | 1.00 | 1.00 | 1 | 0.0e+00 | 2.0e-05 |" in report
    assert "| verl, default | float32 | 8 | 4.000 | 25% | 2.00 | 0.50 | out of memory | - | - | - |" in report
    assert "| time: ours / verl | float32 | 8 | <= 0.850 | 0.500 | met |" in report
    assert "| peak: ours / verl | float32 | 8 | <= 0.400 | - | not measured |" in report
    assert "| gradient error: ours | float32 | - | <= 1.0e-05 | 2.0e-05 | missed |" in report
