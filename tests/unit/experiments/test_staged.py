"""The findings that run through the pipeline: what they measure, and which trainings they are made of."""

import math
from pathlib import Path

import pytest
import torch

from opd_verl.experiments import staged
from opd_verl.experiments.measure import Measurement, overlap_advantage
from opd_verl.experiments.staged import FINDINGS, pipeline_of, table
from opd_verl.pipeline.config import check_names
from opd_verl.quickstart.paths import Paths


def naive_overlap_advantage(p: list[list[float]], q: list[list[float]], k: int) -> float:
    """Rethinking eq. 7 from the definition."""
    total = 0.0
    for p_t, q_t in zip(p, q, strict=True):
        own, others = (sorted(range(len(item)), key=lambda v, item=item: -item[v])[:k] for item in (p_t, q_t))
        mass_p, mass_q = (sum(item[v] for v in own) for item in (p_t, q_t))
        shared = [v for v in own if v in others]
        terms = [p_t[v] / mass_p * math.log((q_t[v] / mass_q) / (p_t[v] / mass_p)) for v in shared]
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(p)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_overlap_advantage_is_the_papers(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    log_p, log_q = (torch.randn(40, 7, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    expected = naive_overlap_advantage(log_p.exp().tolist(), log_q.exp().tolist(), k)
    assert overlap_advantage(log_p, log_q, k) == pytest.approx(expected, abs=1e-12)
    assert overlap_advantage(log_p, log_p, k) == pytest.approx(0.0, abs=1e-12)


def test_every_finding_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "subsets", lambda paths: paths.root / "subsets")
    paths = Paths(tmp_path)
    actual = {name: pipeline_of(finding, paths, 1) for name, finding in FINDINGS.items()}
    for config in actual.values():
        check_names(config)
        assert config.seed == 1 and all(stage.teacher == str(paths.teacher) for stage in config.stages.values())
    assert list(actual["F6"].stages) == ["opd", "cold_start", "cold_start_then_opd"]
    assert actual["F6"].stages["cold_start_then_opd"].student == "cold_start"
    assert actual["F8"].stages["both_wrong"].train == str(tmp_path / "subsets" / "both_wrong.parquet")
    assert actual["F2"].stages["opd"].train is None, "all prompts"


def test_the_pairs_are_what_the_findings_need() -> None:
    paths = Paths(Path("/models"))
    teacher, student = FINDINGS["F10"].pair(paths, 0)
    assert teacher.settings.forget > 0.0 == student.settings.forget, "the teacher forgets carries, the student does not"
    teacher, student = FINDINGS["F6"].pair(paths, 0)
    assert student.settings.openers and not teacher.settings.openers
    first, _, second = FINDINGS["F8"].pair(paths, 0)
    assert first.settings.seed != second.settings.seed and first.directory != second.directory
    assert first.target is None and first.settings.misadded == second.settings.misadded != ()


def test_the_table_has_a_row_per_model_and_the_recovery_of_what_was_trained() -> None:
    def one(accuracy: float) -> Measurement:
        return Measurement(accuracy, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -0.01, 33.0)

    results = [{"before": one(0.2), "teacher": one(1.0), "opd": one(after)} for after in (0.6, 0.8)]
    lines = table("F2", results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["before", "teacher", "opd"]
    assert lines[-1].endswith("| 0.625 ± 0.177 |") and lines[2].endswith("|  |")
