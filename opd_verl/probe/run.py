"""One probe: sample, read, measure, judge, report. What is finished is kept, whatever is killed.

OUT/rollouts, OUT/reading, OUT/continuation      what the models said
OUT/probe.json, probe.md, tokens.json            results
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

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
from opd_verl.probe.verdict import Evidence, cannot, judge, ranking
from opd_verl.sampling.generate import generate_in_child
from opd_verl.sampling.rollouts import Generate, accuracies
from opd_verl.utils.files import write_json, write_text

NOT_RESULTS = ("out", "workers")
NOT_FINITE = "no response token has finite log-probs and entropies of both models: are their weights NaN?"


def probe(config: ProbeConfig, generate: Generate = generate_in_child) -> list[PairResult]:
    """Measures every student with every teacher and writes the results to `config.out`.

    Returns the pairs, the best teacher first. Raises ConfigError before anything starts if a setting, model or file
    cannot work, and ChildError if a model's process fails.
    """
    plan = prepare_probe(config)
    check_k("k", config.k, len(plan.students[BEFORE].tokenizer))
    if plan.teachers:
        sample_all(plan, config, generate)
        rollouts = {
            name: measured_rollouts(plan.jobs[name], plan.per_prompt, config.rollouts) for name in plan.students
        }
        pairs = [(*names, pair) for names, pair in read_pairs(plan, rollouts, config).items()]
        seen = [
            ObservedPair(student, teacher, pair, observe(pair, rollouts[student])) for student, teacher, pair in pairs
        ]
        results = [result(one, rollouts[one.student], plan, config, generate) for one in seen]
        write_json(Path(config.out) / "tokens.json", {"rollouts": shown(seen, rollouts, plan, config)})
    else:
        results = []
    ordered = in_order([*results, *unable(plan)])
    write_report(ordered, config)
    return ordered


def result(
    one: ObservedPair, rollouts: list[Rollout], plan: PreparedProbe, config: ProbeConfig, generate: Generate
) -> PairResult:
    """One pair, measured and judged."""
    student, teacher, seen = one.student, one.teacher, one.observed
    prompts = torch.tensor([one.prompt for one in rollouts])
    answers = Accuracies(accuracies(plan.jobs[student]), accuracies(plan.jobs[teacher]) if config.headroom else None)
    lengths = torch.tensor([len(one.response_ids) for one in rollouts])
    if not seen.mask.any():
        return PairResult(student, teacher, plan.compatibility[teacher], cannot([NOT_FINITE]))
    drawn = draws(len(plan.rows), config.resamples, config.seed)
    measured = measure(seen, prompts, lengths, answers, drawn, config.low_entropy)
    out = Path(config.out) / "continuation" / f"{student}-{teacher}.parquet"
    finished = continue_rollouts(rollouts, plan.students[student], plan.teachers[teacher], plan, config, out, generate)
    assert seen.correct is not None
    going_on = continuations(finished, seen.correct, prompts, drawn)
    verdict = judge(Evidence(measured.estimates, measured.above, going_on))
    found = masses(one.pair, seen.mask)
    return PairResult(student, teacher, plan.compatibility[teacher], verdict, measured, found, going_on)


def unable(plan: PreparedProbe) -> list[PairResult]:
    """The teachers that cannot score this student."""
    return [
        PairResult(BEFORE, name, checks, cannot([one.detail for one in checks if one.fatal and not one.ok]))
        for name, checks in plan.compatibility.items()
        if name not in plan.teachers
    ]


def in_order(results: list[PairResult]) -> list[PairResult]:
    """The best teacher first; each before the training, then after."""
    verdicts = {
        one.teacher: (one.verdict, {} if one.measured is None else one.measured.estimates)
        for one in results
        if one.student == BEFORE
    }
    order = ranking(verdicts)
    return sorted(results, key=lambda one: (order.index(one.teacher), one.student == AFTER))


def shown(
    pairs: list[ObservedPair], rollouts: dict[str, list[Rollout]], plan: PreparedProbe, config: ProbeConfig
) -> list[dict[str, Any]]:
    """Rollouts token by token, of every pair."""
    decode = partial(plan.students[BEFORE].tokenizer.decode, skip_special_tokens=False)
    return [
        rollout
        for one in pairs
        for rollout in sample_tokens(one, rollouts[one.student], decode, config.samples, config.low_entropy)
    ]


def write_report(results: list[PairResult], config: ProbeConfig) -> None:
    """probe.json and probe.md."""
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_RESULTS}
    record = {"version": VERSION, "settings": settings, "pairs": [to_json(one) for one in results]}
    write_json(Path(config.out) / "probe.json", record)
    write_text(Path(config.out) / "probe.md", to_markdown(results, config))
