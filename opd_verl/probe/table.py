"""A probe's results as Markdown: the verdicts, and every measurement with its interval."""

import math
from collections.abc import Sequence

from opd_verl.metrics.estimate import Estimate
from opd_verl.metrics.meanings import MEANINGS
from opd_verl.probe.before_after import before_and_after
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.prepare import AFTER, BEFORE
from opd_verl.probe.result import PairResult
from opd_verl.utils.markdown import markdown_table

UNDEFINED = {
    "rho": "no rollout with two tokens and entropies that vary",
    "fork_overlap": "no rollout of five tokens",
    "dest_corr": "it needs correct and incorrect rollouts, and a corrective token",
    "destructive_reward": "no destructive token",
    "corrective_reward": "no corrective token",
    "forward_kl_at_forks": "the teacher's entropy is nowhere above 0.8 nats",
    "overlap_advantage": "the two top-k share no id",
    "reward_auroc": "it needs correct and incorrect rollouts",
    "end_reward": "no rollout ended by itself",
}
"""Reasons why a measurement may have no value."""
PARTLY = {
    "rho": "one entropy is constant, or a single token",
    "fork_overlap": "fewer than five tokens",
    "overlap_advantage": "no shared id",
}
"""Reasons why a measurement may leave out single rollouts."""


def cell(name: str, estimate: Estimate) -> str:
    """A measurement as `42.0% [40.1, 43.9]` or `0.420 [0.401, 0.439]`, or the reason why it is undefined."""
    if math.isnan(estimate.value):
        return f"undefined: {UNDEFINED.get(name, 'nothing to measure')}"
    return estimate.text(".1f", 100, "%") if MEANINGS[name].percent else estimate.text(".3f")


def verdict_table(pairs: Sequence[PairResult]) -> str:
    """A row for each pair, the best teacher first."""
    rows = [
        [
            pair.teacher,
            pair.verdict.verdict,
            "" if pair.verdict.sure is None else f"{pair.verdict.sure:.0%}",
            pair.verdict.number,
            pair.verdict.rule,
            pair.verdict.row,
        ]
        for pair in pairs
    ]
    return markdown_table(["teacher", "verdict", "sure", "measured", "because", "rests on"], rows)


def measurement_table(pairs: Sequence[PairResult]) -> str:
    """Every measurement, a column for each pair that could be measured."""
    measured = [pair for pair in pairs if pair.measured is not None]
    pair_heads = [f"{pair.student}, {pair.teacher}" for pair in measured]
    heads = ["measurement", *pair_heads, "meaning", "defined in"]
    rows = []
    for name, meaning in MEANINGS.items():
        cells = [measured_cell(name, pair) for pair in measured]
        if any(cells):
            rows.append([f"`{name}`", *cells, meaning.text, meaning.paper])
    return markdown_table(heads, rows)


def measured_cell(name: str, pair: PairResult) -> str:
    """One measurement of one pair, with the number of rollouts left out if the reason is known."""
    assert pair.measured is not None
    measured = pair.measured.values.get(name)
    if measured is None:
        return ""
    left_out = pair.measured.values["response_length"].rollouts - measured.rollouts
    note = f" ({left_out} rollouts left out: {PARTLY[name]})" if name in PARTLY and left_out > 0 else ""
    return cell(name, measured.estimate) + (note if measured.rollouts else "")


def depth_table(pair: PairResult) -> str:
    """Mean r_t by position in the response."""
    assert pair.measured is not None
    rows = [[f"{depth.first} to {depth.last}", str(depth.tokens), depth.reward.text()] for depth in pair.measured.depth]
    return markdown_table(["positions", "tokens", "mean r_t, nats"], rows)


def mass_table(pair: PairResult) -> str:
    """The probability mass of the teacher's top-k, and its bytes."""
    rows = [[str(mass.k), f"{mass.mass:.4f}", str(mass.bytes)] for mass in pair.masses]
    return markdown_table(["k", "teacher mass", "bytes per token"], rows)


def continuation_table(pair: PairResult) -> str:
    """Accuracy of the teacher that continues the student's rollouts."""
    rows = [
        [f"{going_on.share:.0%}", cell("accuracy", going_on.teacher), cell("headroom", going_on.advantage)]
        for going_on in pair.continuation
    ]
    return markdown_table(["after share", "teacher's accuracy", "less the student's accuracy"], rows)


def to_markdown(pairs: Sequence[PairResult], config: ProbeConfig) -> str:
    """The content of probe.md."""
    before = [pair for pair in pairs if pair.student == BEFORE]
    parts = [f"# Probe of {config.student}", verdict_table(before)]
    remedies = [f"* {pair.teacher}: {remedy}" for pair in before for remedy in pair.verdict.remedies]
    parts += ["To try:\n\n" + "\n".join(remedies)] if remedies else []
    if any(pair.student == AFTER for pair in pairs):
        parts.append(f"## Before and after\n\n{before_and_after(pairs)}")
    parts.append(f"## Measurements\n\n{measurement_table(pairs)}")
    for pair in pairs:
        checks = [f"* {'ok' if check.ok else 'PROBLEM'}: {check.what}: {check.detail}" for check in pair.compatibility]
        parts += [f"## {pair.student}, {pair.teacher}", "\n".join(checks)]
        if pair.measured is not None:
            parts += [depth_table(pair), mass_table(pair)]
            parts += [continuation_table(pair)] if pair.continuation else []
    parts.append(caption(config))
    return "\n\n".join(parts) + "\n"


def caption(config: ProbeConfig) -> str:
    """The settings behind the numbers, in words."""
    return (
        f"{config.rollouts} rollouts at temperature {config.temperature:g}, top-p {config.top_p:g}, at most "
        f"{config.max_tokens} tokens; accuracies of n = {config.n} responses per prompt; k = {config.k}; seed "
        f"{config.seed}. In brackets: 95% intervals of {config.resamples} bootstrap replicates over prompts."
    )
