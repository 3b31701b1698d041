"""A probe's results as Markdown: the verdicts, every measurement, and how sure it is."""

import math
from collections.abc import Sequence

from opd_verl.metrics.estimate import Estimate
from opd_verl.metrics.meanings import MEANINGS
from opd_verl.probe.before_after import before_and_after
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.prepare import AFTER, BEFORE
from opd_verl.probe.result import PairResult
from opd_verl.probe.verdict import span
from opd_verl.utils.markdown import markdown_table

UNDEFINED = {
    "rho": "no rollout with two tokens and entropies that vary",
    "fork_overlap": "no rollout of five tokens",
    "dest_corr": "it needs correct and incorrect rollouts, and a corrective token",
    "destructive_reward": "no destructive token",
    "corrective_reward": "no corrective token",
    "forward_kl_at_forks": "the teacher is nowhere above 0.8 nats",
    "overlap_advantage": "the two top-k share no id",
    "reward_auroc": "it needs correct and incorrect rollouts",
    "end_reward": "no rollout ended by itself",
}
"""Why a measurement may have no value."""
PARTLY = {
    "rho": "one entropy is constant, or a single token",
    "fork_overlap": "fewer than five tokens",
    "overlap_advantage": "no shared id",
}


def cell(name: str, one: Estimate) -> str:
    """`42.0% [40.1, 43.9]`, or why there is none."""
    if math.isnan(one.value):
        return f"undefined: {UNDEFINED.get(name, 'nothing to measure')}"
    if not MEANINGS[name].percent:
        ends = "" if math.isnan(one.low) else f" [{one.low:.3f}, {one.high:.3f}]"
        return f"{one.value:.3f}{ends}"
    ends = "" if math.isnan(one.low) else f" [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return f"{100 * one.value:.1f}%{ends}"


def verdict_table(pairs: Sequence[PairResult]) -> str:
    """A row for each pair, from the best teacher on."""
    rows = [
        [
            one.teacher,
            one.verdict.verdict,
            "" if one.verdict.sure is None else f"{one.verdict.sure:.0%}",
            one.verdict.number,
            one.verdict.rule,
            one.verdict.row,
        ]
        for one in pairs
    ]
    return markdown_table(["teacher", "verdict", "sure", "measured", "because", "rests on"], rows)


def measurement_table(pairs: Sequence[PairResult]) -> str:
    """Every measurement, a column for each pair that could be measured."""
    shown = [one for one in pairs if one.measured is not None]
    heads = ["measurement", *(f"{one.student}, {one.teacher}" for one in shown), "what it is", "defined in"]
    rows = []
    for name, meaning in MEANINGS.items():
        cells = [measured_cell(name, one) for one in shown]
        if any(cells):
            rows.append([f"`{name}`", *cells, meaning.text, meaning.paper])
    return markdown_table(heads, rows)


def measured_cell(name: str, pair: PairResult) -> str:
    """One measurement of one pair, with the rollouts that had no part in it where the reason is known."""
    assert pair.measured is not None
    found = pair.measured.values.get(name)
    if found is None:
        return ""
    left_out = pair.measured.values["response_length"].rollouts - found.rollouts
    note = f" ({left_out} rollouts left out: {PARTLY[name]})" if name in PARTLY and left_out > 0 else ""
    return cell(name, found.estimate) + (note if found.rollouts else "")


def depth_table(pair: PairResult) -> str:
    """r_t by depth."""
    assert pair.measured is not None
    rows = [[f"{one.first} to {one.last}", str(one.tokens), span(one.reward)] for one in pair.measured.depth]
    return markdown_table(["positions", "tokens", "mean r_t, nats"], rows)


def mass_table(pair: PairResult) -> str:
    """What a top-k keeps and costs."""
    rows = [[str(one.k), f"{one.mass:.4f}", str(one.bytes)] for one in pair.masses]
    return markdown_table(["k", "teacher mass", "bytes per token"], rows)


def continuation_table(pair: PairResult) -> str:
    """The teacher in the student's place."""
    rows = [
        [f"{one.share:.0%}", cell("accuracy", one.teacher), cell("headroom", one.advantage)]
        for one in pair.continuation
    ]
    return markdown_table(["behind", "teacher's accuracy", "less the student's own"], rows)


def to_markdown(pairs: Sequence[PairResult], config: ProbeConfig) -> str:
    """probe.md."""
    before = [one for one in pairs if one.student == BEFORE]
    parts = [f"# Probe of {config.student}", verdict_table(before)]
    remedies = [f"* {one.teacher}: {remedy}" for one in before for remedy in one.verdict.remedies]
    parts += ["To try:\n\n" + "\n".join(remedies)] if remedies else []
    if any(one.student == AFTER for one in pairs):
        parts.append(f"## Before and after\n\n{before_and_after(pairs)}")
    parts.append(f"## Measurements\n\n{measurement_table(pairs)}")
    for one in pairs:
        parts.append(f"## {one.student}, {one.teacher}")
        parts.append(
            "\n".join(f"* {'ok' if done.ok else 'PROBLEM'}: {done.what}: {done.detail}" for done in one.compatibility)
        )
        if one.measured is not None:
            parts += [depth_table(one), mass_table(one)]
            parts += [continuation_table(one)] if one.continuation else []
    parts.append(caption(config))
    return "\n\n".join(parts) + "\n"


def caption(config: ProbeConfig) -> str:
    """How the numbers were made."""
    return (
        f"{config.rollouts} rollouts at temperature {config.temperature:g}, top-p {config.top_p:g}, at most "
        f"{config.max_tokens} tokens; accuracies of n = {config.n} responses per prompt; k = {config.k}; seed "
        f"{config.seed}. In brackets: 95% intervals of {config.resamples} bootstrap replicates over prompts."
    )
