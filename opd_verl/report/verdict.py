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


def box(run: ReportedRun, pair: ProbedPair, found: Verdict) -> str:
    """One verdict: what, why, by which row of the papers, and what to do."""
    look, sign = LOOKS.get(found.verdict, UNKNOWN)
    sure = "" if found.sure is None else f' <small class="sure">{found.sure:.0%} sure</small>'
    reasons = [("Why", found.rule), ("Here", found.number), ("From", found.row)]
    lines = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in reasons if text)
    remedies = "".join(f"<li>{escape(text)}</li>" for text in found.remedies)
    return (
        f'<article class="box {look}"><p class="who">{badge(run)} {escape(pair.name)}</p>'
        f'<h3><span class="sign" aria-hidden="true">{sign}</span> {escape(found.verdict)}{sure}</h3><dl>{lines}</dl>'
        + (f"<p>What helps:</p><ul>{remedies}</ul>" if remedies else "")
        + compatibility(pair.compatibility)
        + "</article>"
    )


def compatibility(checks: Sequence[CompatibilityCheck]) -> str:
    """What student and teacher have in common; open where something is wrong."""
    if not checks:
        return ""
    lines = "".join(check_line(one) for one in checks)
    failed = sum(not one.ok for one in checks)
    title = f"{failed} of {len(checks)} checks failed" if failed else f"All {len(checks)} compatibility checks passed"
    return f"<details{' open' * bool(failed)}><summary>{title}</summary><ul class='checks'>{lines}</ul></details>"


def check_line(check: CompatibilityCheck) -> str:
    """One check."""
    sign, word = ("✓", "yes") if check.ok else ("✗", "no")
    tick = f'<span class="tick" role="img" aria-label="{word}">{sign}</span>'
    return f"<li>{tick} {escape(check.what)}: {escape(check.detail)}</li>"
