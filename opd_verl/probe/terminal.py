"""A probe's results on a terminal of 80 columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from opd_verl.metrics.meanings import MEANINGS
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.prepare import BEFORE
from opd_verl.probe.result import PairResult
from opd_verl.probe.table import caption, cell
from opd_verl.probe.verdict import CANNOT, GAIN, NO_HEADROOM, REGRESSION

SHOWN = (
    "student_accuracy",
    "teacher_accuracy",
    "dest_corr",
    "rho",
    "fork_overlap",
    "overlap_ratio",
    "overlap_teacher_mass",
    "reverse_kl",
    "truncated_share",
    "response_length",
)
"""Measurements that the terminal shows; probe.md has all measurements."""
COLOURS = {GAIN: "green", NO_HEADROOM: "yellow", REGRESSION: "red", CANNOT: "red"}


def print_verdicts(results: Sequence[PairResult], config: ProbeConfig, console: Console) -> None:
    """Prints a panel and the main measurements of each teacher, the best teacher first."""
    for pair in results:
        if pair.student == BEFORE:
            console.print(Panel(in_words(pair), title=f"{pair.teacher}: {pair.verdict.verdict}", title_align="left",
                                border_style=COLOURS[pair.verdict.verdict]))  # fmt: skip
        if pair.measured is not None:
            console.print(measured_table(pair))
    console.print(caption(config))
    console.print(f"{config.out}: probe.md, probe.json, tokens.json")


def in_words(pair: PairResult) -> str:
    """The verdict: rule, number, source, remedies and failed checks."""
    verdict = pair.verdict
    sure = "" if verdict.sure is None else f" (sure: {verdict.sure:.0%})"
    lines = [f"{verdict.rule}{sure}", verdict.number, f"rests on {verdict.row}"]
    lines += [f"try: {remedy}" for remedy in verdict.remedies]
    lines += [f"{check.what}: {check.detail}" for check in pair.compatibility if not check.ok]
    return "\n".join(lines)


def measured_table(pair: PairResult) -> Table:
    """A pair's main measurements."""
    assert pair.measured is not None
    table = Table("measurement", "value", title=f"{pair.student} on {pair.teacher}", title_justify="left", box=None)
    for name in SHOWN:
        if name in pair.measured.values:
            table.add_row(MEANINGS[name].text, cell(name, pair.measured.values[name].estimate))
    return table
