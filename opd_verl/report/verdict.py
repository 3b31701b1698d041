"""The probe's verdicts as boxes that differ in sign and border, not by colour alone."""

from collections.abc import Sequence
from html import escape

from opd_verl.probe.record import CompatibilityCheck, Verdict
from opd_verl.probe.verdict import CANNOT, GAIN, NO_HEADROOM, REGRESSION
from opd_verl.report.overview import badge
from opd_verl.report.probe import ProbedPair
from opd_verl.report.runs import ReportedRun, every_pair

LOOKS = {
    GAIN: ("good", "✓"),
    NO_HEADROOM: ("even", "="),
    REGRESSION: ("warn", "!"),
    CANNOT: ("bad", "✗"),
}
UNKNOWN = ("even", "?")


def verdict_boxes(runs: Sequence[ReportedRun]) -> str:
    """A box for each pair with a verdict."""
    boxes = [box(run, pair, pair.verdict) for run, pair in every_pair(runs) if pair.verdict]
    return f'<div class="boxes">{"".join(boxes)}</div>' if boxes else ""


def box(run: ReportedRun, pair: ProbedPair, verdict: Verdict) -> str:
    """One verdict: the forecast, its rule, number and source, and the remedies."""
    look, sign = LOOKS.get(verdict.verdict, UNKNOWN)
    sure = "" if verdict.sure is None else f' <small class="sure">{verdict.sure:.0%} sure</small>'
    reasons = [("Why", verdict.rule), ("Here", verdict.number), ("From", verdict.row)]
    lines = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in reasons if text)
    remedies = "".join(f"<li>{escape(text)}</li>" for text in verdict.remedies)
    return (
        f'<article class="box {look}"><p class="who">{badge(run)} {escape(pair.name)}</p>'
        f'<h3><span class="sign" aria-hidden="true">{sign}</span> {escape(verdict.verdict)}{sure}</h3><dl>{lines}</dl>'
        + (f"<p>To try:</p><ul>{remedies}</ul>" if remedies else "")
        + compatibility(pair.compatibility)
        + "</article>"
    )


def compatibility(checks: Sequence[CompatibilityCheck]) -> str:
    """The compatibility checks, opened if one failed."""
    if not checks:
        return ""
    lines = "".join(check_line(check) for check in checks)
    failed = sum(not check.ok for check in checks)
    title = f"{failed} of {len(checks)} checks failed" if failed else f"All {len(checks)} compatibility checks passed"
    return f"<details{' open' * bool(failed)}><summary>{title}</summary><ul class='checks'>{lines}</ul></details>"


def check_line(check: CompatibilityCheck) -> str:
    """One check as a line of the list."""
    sign, word = ("✓", "yes") if check.ok else ("✗", "no")
    tick = f'<span class="tick" role="img" aria-label="{word}">{sign}</span>'
    return f"<li>{tick} {escape(check.what)}: {escape(check.detail)}</li>"
