"""Tables about the runs as HTML: files, last values, alerts, measurements and evaluations."""

import math
from collections.abc import Sequence
from html import escape

from opd_verl.eval.table import columns, filled_columns
from opd_verl.metrics.estimate import Estimate
from opd_verl.metrics.meanings import MEANINGS
from opd_verl.report.curves import VALIDATION
from opd_verl.report.probe import ProbedPair
from opd_verl.report.runs import ReportedRun, alerts, every_pair, last, metrics_of
from opd_verl.utils.plot_style import series

KEY_METRICS = {
    "critic/score/mean": "score",
    "opd/reward_mean": "mean r_t",
    "opd/reverse_kl": "reverse KL",
    "opd/overlap_ratio": "overlap",
    "opd/dest_corr": "Dest:Corr",
    "response_length/mean": "length",
    "opd/truncated_share": "truncated",
}
KEY_MEASUREMENTS = (
    "accuracy",
    "teacher_accuracy",
    "headroom",
    "reverse_kl",
    "overlap_ratio",
    "rho",
    "fork_overlap",
    "entropy_gap",
    "dest_corr",
    "reward_auroc",
)
"""Measurements that are shown first; the reader can open the others."""


def number(value: float) -> str:
    """A number with four digits; a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def estimate_html(estimate: Estimate | None) -> str:
    """`0.43 [0.4, 0.46]`, the interval in small type; a dash for NaN, nothing for None."""
    if estimate is None:
        return ""
    low, high = estimate.low, estimate.high
    interval = "" if math.isnan(low + high) else f" <small>[{low:.3g}, {high:.3g}]</small>"
    return ("-" if math.isnan(estimate.value) else f"{estimate.value:.3g}") + interval


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table of HTML cells. It scrolls within its own box, by keyboard too; a row's first cell is its heading."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def badge(run: ReportedRun) -> str:
    """The run's letter on its colour."""
    return f'<b class="badge" style="--c:var(--series-{run.index % 6})">{run.letter}</b>'


def key(runs: Sequence[ReportedRun]) -> str:
    """The legend: letter, line and name of each run, the same in all charts."""
    return f'<ul class="runs">{"".join(f"<li>{badge(run)} {swatch(run)} {escape(run.name)}</li>" for run in runs)}</ul>'


def swatch(run: ReportedRun) -> str:
    """A short line as the run's charts draw it."""
    dashes = {"-": "none", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}[series(run.index)["linestyle"]]
    return (
        f'<svg class="swatch" viewBox="0 0 34 8" aria-hidden="true"><path d="M0 4H34" fill="none" stroke-width="2.5" '
        f'style="stroke:var(--series-{run.index % 6})" stroke-dasharray="{dashes}"/></svg>'
    )


def runs_table(runs: Sequence[ReportedRun]) -> str:
    """A row for each run: the parts of its folder, recipe, steps, and the last value of each key metric."""
    logged = metrics_of(runs)
    titles = KEY_METRICS | {name: f"{match[1]}, {match[3]}" for name in logged if (match := VALIDATION.fullmatch(name))}
    chosen = {name: title for name, title in titles.items() if name in logged}
    rows = [
        [
            f"{badge(run)} {escape(run.name)}<br><small>{escape(parts_text(run))}</small>",
            escape(run.recipe) or "-",
            steps_text(run),
            *(last_text(run, name) for name in chosen),
        ]
        for run in runs
    ]
    headings = ["run", "recipe", "steps", *(escape(title) for title in chosen.values())]
    return table(headings, rows, "Runs and their last values")


def steps_text(run: ReportedRun) -> str:
    """First and last logged step."""
    return f"{run.steps[0]['step']} to {run.steps[-1]['step']}" if run.steps else "-"


def parts_text(run: ReportedRun) -> str:
    """The kinds of files that the folder has."""
    parts = {"training": run.steps, "probe": run.pairs, "evaluation": run.evaluation, "tokens": run.shown}
    return ", ".join(name for name, content in parts.items() if content)


def last_text(run: ReportedRun, metric: str) -> str:
    """The last known value, with its step if the run went on without the metric."""
    end = last(run, metric)
    if end is None:
        return "-"
    step, value = end
    return number(value) + ("" if step == run.steps[-1]["step"] else f" <small>(step {step})</small>")


def alert_box(runs: Sequence[ReportedRun]) -> str:
    """Every alert that was ever active; "" if there is none."""
    lines = "".join(alert_line(run, name, active) for run in runs for name, active in alerts(run))
    head = '<h3><span class="sign" aria-hidden="true">!</span> Alerts</h3>'
    return f'<div class="box warn">{head}<ul>{lines}</ul></div>' if lines else ""


def alert_line(run: ReportedRun, name: str, active: Sequence[int]) -> str:
    """One alert of one run."""
    now = "still active" if active[-1] == run.steps[-1]["step"] else "over"
    steps = f"{len(active)} {'step' if len(active) == 1 else 'steps'}, first {active[0]}, last {active[-1]}; {now}"
    return f"<li>{badge(run)} <code>{escape(name)}</code>: {steps}</li>"


def measurement_tables(runs: Sequence[ReportedRun]) -> str:
    """A column for each pair of all probes: the key measurements, and the others behind a button."""
    pairs = every_pair(runs)
    if not pairs:
        return ""
    names = list(dict.fromkeys(name for _, pair in pairs for name in pair.measurements))
    first = [name for name in KEY_MEASUREMENTS if name in names]
    rest = [name for name in names if name not in first]
    headings = ["measurement", *(f"{badge(run)} {escape(pair.name)}" for run, pair in pairs)]
    tables = table(headings, [measurement_row(name, [pair for _, pair in pairs]) for name in first], "Key measurements")
    if rest:
        more = table(headings, [measurement_row(name, [pair for _, pair in pairs]) for name in rest], "Measurements")
        tables += f"<details><summary>{len(rest)} more measurements</summary>{more}</details>"
    return tables


def measurement_row(name: str, pairs: Sequence[ProbedPair]) -> list[str]:
    """One measurement of all pairs; the mouse over its name shows the meaning."""
    meaning = MEANINGS.get(name)
    title = "; ".join(filter(None, (meaning.text, meaning.paper))) if meaning else ""
    label = f'<abbr title="{escape(title)}">{escape(name)}</abbr>' if title else escape(name)
    return [label, *(estimate_html(pair.measurements.get(name)) for pair in pairs)]


def evaluation_tables(runs: Sequence[ReportedRun]) -> str:
    """A table for each run that has an evaluation, with the evaluation's own columns."""
    return "".join(evaluation_table(run) for run in runs if run.evaluation)


def evaluation_table(run: ReportedRun) -> str:
    """The table of one evaluation."""
    assert run.evaluation
    rows = run.evaluation.rows
    filled = filled_columns(columns(run.evaluation.n, run.evaluation.ks), rows)
    cells = [[escape(cell(row)) for cell in filled.values()] for row in rows]
    return (
        f"<p>{badge(run)} {escape(run.name)}</p>{table(list(map(escape, filled)), cells, f'Evaluation of {run.name}')}"
    )
