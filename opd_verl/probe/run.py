"""One probe: sample, read, measure, judge, report. A killed probe resumes with the missing parts.

OUT/rollouts, OUT/continuation, OUT/reading      responses, and the models' readings of them
OUT/probe.json, probe.md, tokens.json            results
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from opd_verl.checks.models import check_k
from opd_verl.metrics.bootstrap import draws
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.costs import continuations, masses
from opd_verl.probe.measure import Accuracies, measure
from opd_verl.probe.observe import ObservedPair, observe
from opd_verl.probe.prepare import AFTER, BEFORE, PreparedProbe, prepare_probe
from opd_verl.probe.readings import read_pairs
from opd_verl.probe.record import VERSION
from opd_verl.probe.result import PairResult, to_json
from opd_verl.probe.rollouts import Rollout, continue_rollouts, measured_rollouts, sample_all
from opd_verl.probe.table import to_markdown
from opd_verl.probe.tokens import sample_tokens
from opd_verl.probe.verdict import Evidence, cannot, decide, ranking
from opd_verl.sampling.generate import generate_in_child
from opd_verl.sampling.rollouts import Generate, accuracies
from opd_verl.utils.files import write_json, write_text

NOT_RESULTS = ("out", "workers")
"""Settings that change no number; probe.json leaves them out."""
NOT_FINITE = "no response token has finite log-probs and entropies of both models: are their weights NaN?"


def probe(config: ProbeConfig, generate: Generate = generate_in_child) -> list[PairResult]:
    """Measures every student with every teacher and writes the results to `config.out`.

    Returns the pairs, the best teacher first. Raises ConfigError before any model is loaded if a setting, model or file
    cannot work, and ChildError if a model's process fails.
    """
    prepared = prepare_probe(config)
    check_k("k", config.k, len(prepared.students[BEFORE].tokenizer))
    results = measure_pairs(prepared, config, generate) if prepared.teachers else []
    ordered = in_order([*results, *unable(prepared)])
    write_report(ordered, config)
    return ordered


def measure_pairs(prepared: PreparedProbe, config: ProbeConfig, generate: Generate) -> list[PairResult]:
    """Samples, reads and measures all pairs, and writes tokens.json."""
    sample_all(prepared, config, generate)
    rollouts = {
        name: measured_rollouts(prepared.jobs[name], prepared.per_prompt, config.rollouts) for name in prepared.students
    }
    pairs = [
        ObservedPair(student, teacher, readings, observe(readings, rollouts[student]))
        for (student, teacher), readings in read_pairs(prepared, rollouts, config).items()
    ]
    results = [pair_result(pair, rollouts[pair.student], prepared, config, generate) for pair in pairs]
    write_json(Path(config.out) / "tokens.json", {"rollouts": shown_rollouts(pairs, rollouts, prepared, config)})
    return results


def pair_result(
    pair: ObservedPair, rollouts: list[Rollout], prepared: PreparedProbe, config: ProbeConfig, generate: Generate
) -> PairResult:
    """Measures and judges one pair."""
    student, teacher, seen = pair.student, pair.teacher, pair.observed
    checks = prepared.compatibility[teacher]
    if not seen.mask.any():
        return PairResult(student, teacher, checks, cannot([NOT_FINITE]))
    prompts = torch.tensor([rollout.prompt for rollout in rollouts])
    lengths = torch.tensor([len(rollout.response_ids) for rollout in rollouts])
    teacher_accuracies = accuracies(prepared.jobs[teacher]) if config.headroom else None
    answers = Accuracies(accuracies(prepared.jobs[student]), teacher_accuracies)
    # The same seed for every pair: teachers are compared on the same draws of prompts.
    drawn = draws(len(prepared.rows), config.resamples, config.seed)
    measured = measure(seen, prompts, lengths, answers, drawn, config.low_entropy)
    out = Path(config.out) / "continuation" / f"{student}-{teacher}.parquet"
    models = (prepared.students[student], prepared.teachers[teacher])
    finished = continue_rollouts(rollouts, *models, prepared, config, out, generate)
    assert seen.correct is not None
    continued = continuations(finished, seen.correct, prompts, drawn)
    verdict = decide(Evidence(measured.estimates, measured.above, continued))
    return PairResult(student, teacher, checks, verdict, measured, masses(pair.readings, seen.mask), continued)


def unable(prepared: PreparedProbe) -> list[PairResult]:
    """The results of the teachers that cannot score this student."""
    return [
        PairResult(BEFORE, name, checks, cannot([check.detail for check in checks if check.fatal and not check.ok]))
        for name, checks in prepared.compatibility.items()
        if name not in prepared.teachers
    ]


def in_order(results: list[PairResult]) -> list[PairResult]:
    """The best teacher first; for each teacher the student before training, then after training."""
    verdicts = {
        pair.teacher: (pair.verdict, {} if pair.measured is None else pair.measured.estimates)
        for pair in results
        if pair.student == BEFORE
    }
    order = ranking(verdicts)
    return sorted(results, key=lambda pair: (order.index(pair.teacher), pair.student == AFTER))


def shown_rollouts(
    pairs: list[ObservedPair], rollouts: dict[str, list[Rollout]], prepared: PreparedProbe, config: ProbeConfig
) -> list[dict[str, object]]:
    """Some rollouts of every pair token by token, as plain values."""
    # Student and teachers share a tokenizer: the compatibility checks make sure of it.
    student = prepared.students[BEFORE]

    def decode(ids: Sequence[int]) -> str:
        return student.decode(ids, skip_special_tokens=False)

    return [
        rollout
        for pair in pairs
        for rollout in sample_tokens(pair, rollouts[pair.student], decode, config.samples, config.low_entropy)
    ]


def write_report(results: list[PairResult], config: ProbeConfig) -> None:
    """Writes probe.json and probe.md."""
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_RESULTS}
    record = {"version": VERSION, "settings": settings, "pairs": [to_json(pair) for pair in results]}
    write_json(Path(config.out) / "probe.json", record)
    write_text(Path(config.out) / "probe.md", to_markdown(results, config))
