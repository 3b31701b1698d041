"""Measurements and alerts during training: what is logged, whose rollouts count, and when a sign speaks."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from opd_verl.config.opd import OpdConfig
from opd_verl.metrics.alerts import SIGNS, WINDOW, Watch
from opd_verl.metrics.depth import depth_buckets
from opd_verl.metrics.live import live_metrics, own_rollouts, select_rollouts
from opd_verl.metrics.measurements import Observed, measurements
from opd_verl.metrics.names import CONDITIONAL, METRICS
from opd_verl.metrics.overlap import Overlap
from opd_verl.training.diagnostics import Diagnostics

B, R = 4, 8


def seen(seed: int = 0) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    log_p, log_q = (-torch.rand(B, R, generator=generator) for _ in range(2))
    lengths = torch.tensor([8, 5, 2, 7])
    return Observed(
        log_p=log_p,
        log_q=log_q,
        student_entropy=torch.rand(B, R, generator=generator) / 2,
        teacher_entropy=torch.rand(B, R, generator=generator),
        mask=(torch.arange(R) < lengths[:, None]).long(),
        correct=torch.tensor([True, False, True, False]),
        overlap=Overlap(*(torch.rand(B, R, generator=generator) for _ in range(5))),
    )


def test_what_is_logged_is_what_is_measured() -> None:
    actual = live_metrics(seen(), depth_buckets(R, 2), 0.3)
    expected = {f"opd/{name}": ratio.value for name, ratio in measurements(seen(), 0.3).items()}
    assert all(actual[name] == expected[name] for name in actual if name in expected)
    assert {"opd/rho", "opd/dest_corr", "opd/overlap_ratio", "opd/q3_force", "opd/reward_auroc"} <= set(actual)
    reward, mask = seen().reward, seen().mask
    for first, last in ((0, 3), (4, 7)):
        part = slice(first, last + 1)
        by_hand = (reward * mask)[:, part].sum() / mask[:, part].sum()
        assert actual[f"opd/depth/{first}-{last}/reward"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_every_name_is_in_the_documents() -> None:
    documented = METRICS | CONDITIONAL
    names = set(live_metrics(seen(), [], 0.3)) | set(Watch().metrics())
    assert set(Watch().metrics()) == {"opd/alerts"}, "a sign that never spoke is not logged"
    assert {name for name in names if not name.startswith("opd/alert/")} <= set(documented)
    assert all(sign in documented["opd/alert/<sign>"] for sign in SIGNS)


def test_what_is_undefined_is_not_logged() -> None:
    item = replace(select_rollouts(seen(), torch.tensor([False, False, True, False])), overlap=None)
    actual = live_metrics(item, depth_buckets(R, 2), 0.3)
    assert not {"opd/dest_corr", "opd/reward_auroc", "opd/fork_overlap", "opd/depth/4-7/reward"} & set(actual)
    assert all(math.isfinite(value) for value in actual.values())


def test_padding_and_the_data_sets_responses_do_not_count() -> None:
    whole = seen()
    padded = replace(whole, mask=whole.mask * torch.tensor([1, 1, 0, 1])[:, None])
    off_policy = torch.tensor([False, True, False, False])
    own = own_rollouts(padded, off_policy)
    assert own.log_p.tolist() == whole.log_p[[0, 3]].tolist() and own.overlap is not None
    assert own.correct is not None and own.correct.tolist() == [True, False]
    assert len(own.overlap.ratio) == 2
    assert live_metrics(own_rollouts(padded, torch.ones(B, dtype=torch.bool)), [], 0.3) == {}
    assert len(own_rollouts(padded, None).mask) == 3


def steps(metric: str, values: list[float]) -> tuple[list[str], Watch]:
    """The signs that begin to speak, step by step."""
    watch, said = Watch(), []
    for value in values:
        said += watch.update({metric: value})
    return said, watch


@pytest.mark.parametrize(
    ("metric", "healthy", "sick", "sign"),
    [
        ("opd/response_length", 100.0, 160.0, "length_explosion"),
        ("opd/response_length", 100.0, 40.0, "length_collapse"),
        ("opd/student_entropy", 1.0, 0.2, "entropy_collapse"),
        ("opd/overlap_ratio", 0.8, 0.7, "falling_overlap"),
        ("opd/truncated_share", 0.05, 0.3, "rising_truncation"),
        ("opd/dest_corr", 0.5, 1.2, "destructive"),
    ],
)
def test_each_sign_speaks_once_and_falls_silent(metric: str, healthy: float, sick: float, sign: str) -> None:
    assert steps(metric, [healthy] * 12)[0] == []
    said, watch = steps(metric, [healthy] * 8 + [sick] * 8)
    assert said == [sign] and watch.metrics()["opd/alerts"] == 1.0 and watch.metrics()[f"opd/alert/{sign}"] == 1.0
    for _ in range(WINDOW):
        watch.update({metric: healthy})
    assert watch.metrics()["opd/alerts"] == 0.0
    assert steps(metric, [healthy] * 8 + [sick] + [healthy] * 8)[0] == [], "one odd step is no sign"


@given(st.lists(st.floats(0.0, 1e4), max_size=4))
def test_a_few_steps_say_nothing(values: list[float]) -> None:
    assert steps("opd/response_length", values)[0] == []


def test_a_resumed_run_remembers_how_it_began() -> None:
    values = [100.0] * 6 + [130.0] * 3 + [170.0] * 6
    whole = steps("opd/response_length", values)[1]
    earlier = [{"opd/response_length": value} for value in values[:9]]
    resumed = Watch(earlier)
    for value in values[9:]:
        resumed.update({"opd/response_length": value})
    assert resumed.active == whole.active == {"length_explosion"}
    assert resumed.first == whole.first


def diagnostics(folder: Path, step: int) -> Diagnostics:
    config = {"trainer": {"default_local_dir": str(folder)}, "data": {"max_response_length": R}}
    return Diagnostics(OpdConfig(), OmegaConf.create(config), step)


def test_the_trainers_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"step": n, "data": {"opd/truncated_share": 0.0 if n < 6 else 0.9}} for n in range(1, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    resumed = diagnostics(tmp_path, 5)
    assert resumed.watch.first == {"opd/truncated_share": [0.0] * 5}, "steps after the checkpoint are made again"
    assert diagnostics(tmp_path, 0).watch.first == {}, "a new run in an old folder"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            actual = resumed.update(seen(), {"opd/truncated_share": 0.9})
    assert actual["opd/alert/rising_truncation"] == 1.0 and "opd/depth/7-7/reward" in actual
    assert [record.message for record in caplog.records if "rising_truncation" in record.message] != []
    assert len([record for record in caplog.records if "rising_truncation" in record.message]) == 1, "said once"
    assert 0.0 < actual["timing_s/diagnostics"] < 5.0
