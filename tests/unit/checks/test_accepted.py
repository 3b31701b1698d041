"""A run that starts describes its teacher in one line; a teacher too large for a device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from preflight_harness import Files
from tiny_models import save_tiny_qwen3, tiny_qwen3
from transformers import AutoConfig, AutoTokenizer

from opd_verl.checks import accepted
from opd_verl.checks.preflight import preflight
from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import TeacherConfig

PARAMETERS = sum(weight.numel() for weight in tiny_qwen3(96).parameters())


def test_parameters_are_counted_without_reading_them(tmp_path: Path) -> None:
    assert accepted.parameter_count(str(tmp_path)) is None
    save_tiny_qwen3(tmp_path)
    assert accepted.parameter_count(str(tmp_path)) == PARAMETERS
    model: Any = tiny_qwen3(96)
    model.save_pretrained(tmp_path / "in parts", max_shard_size="20KB")
    assert len(list((tmp_path / "in parts").glob("*.safetensors"))) > 1
    assert accepted.parameter_count(str(tmp_path / "in parts")) == PARAMETERS


@pytest.mark.parametrize(
    ("dtype", "shards", "size"), [("float32", 1, 4), ("bfloat16", 1, 2), ("auto", 1, 4), ("float32", 2, 2)]
)
def test_weights_in_the_dtype_that_they_load_in(tmp_path: Path, dtype: str, shards: int, size: int) -> None:
    path = save_tiny_qwen3(tmp_path)
    teacher = TeacherConfig(path=path, dtype=dtype, shards=shards)
    assert accepted.weight_bytes(teacher, AutoConfig.from_pretrained(path)) == size * PARAMETERS


def test_a_teacher_too_large_for_a_device_is_refused_with_the_shards_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted, "device_bytes", lambda: 2**30)
    accepted.check_memory("opd.teacher", TeacherConfig(), None)
    accepted.check_memory("opd.teacher", TeacherConfig(), 2**30)
    with pytest.raises(ConfigError, match=r"opd.teacher.shards=2: 2.5 GiB .*and a device has 1 GiB.*shards=6\."):
        accepted.check_memory("opd.teacher", TeacherConfig(shards=2), 5 * 2**29)


def test_the_host_is_the_device_where_there_is_no_accelerator() -> None:
    assert torch.cuda.is_available() or accepted.device_bytes() > 2**30


def test_a_run_that_starts_says_what_its_teacher_was_accepted_with(files: Files) -> None:
    (said,) = preflight(files.config("opd.teacher.dtype=float32"))
    size = accepted.gib(4 * PARAMETERS)
    assert said == (
        f"opd_verl: opd.teacher.path={files.path('teacher')} accepted: qwen3, float32, {size} of weights per device; "
        "the student's 96 tokens; ends with 'w1'; temperature 1; context 128 for at most 80"
    )


def test_harmless_differences_are_said(files: Files) -> None:
    both = "+opd.teachers={a: {path: @teacher_104, values: [x]}, b: {path: @teacher, values: [y]}}"
    padded, plain = preflight(files.config(both.replace("@", f"{files.root}/")))
    assert "opd.teachers.a.path=" in padded and "96 tokens, 8 padding rows cut off; ends" in padded
    assert "weights of unknown size" in padded, "a model folder without weights"
    assert "padding" not in plain
    own, student = (AutoTokenizer.from_pretrained(files.path("teacher")) for _ in range(2))
    own.pad_token = "w5"
    config = AutoConfig.from_pretrained(files.path("teacher"))
    said = list(accepted.facts(TeacherConfig(path="/nowhere"), config, None, student, own, 80))
    assert said[-1] == "another pad_token than the student's; it reads the student's prompts"
