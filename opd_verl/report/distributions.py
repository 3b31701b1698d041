"""Histograms of token entropies, and pass@k: drawn by the evaluation's own panels."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from opd_verl.eval.plots import entropy_counts, entropy_panel, pass_panel
from opd_verl.eval.rows import EvalRow
from opd_verl.report.chart import Chart, Theme
from opd_verl.report.runs import ReportedRun

ENTROPY_INTRO = (
    "Share of the tokens in each bin of 0.1 nats, on a logarithmic scale; the dotted line is at 1 nat. A line that "
    "drops early has lost its uncertain tokens. After distillation the student's line should lie on the teacher's."
)
PASS_INTRO = (
    "Share of problems solved by at least one of k samples, with its 95% interval. A line that starts high but ends "
    "below another line: better single answers, less variety."
)


def entropy_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A chart for each teacher of a probe, and for each benchmark of an evaluation."""
    histograms: list[tuple[str, str, Mapping[str, Sequence[int]]]] = [
        (f"entropies_{run.letter.lower()}_probe_{number}", f"{run.letter} probe, teacher {teacher}", counts)
        for run in runs
        for number, (teacher, counts) in enumerate(probe_counts(run).items(), 1)
    ]
    for run, benchmark, rows in evaluated(runs):
        if counts := entropy_counts(rows):
            histograms.append(
                (f"entropies_{run.letter.lower()}_{slug(benchmark)}", f"{run.letter} {benchmark}", counts)
            )
    return [
        Chart(name, title, entropy_text(counts), partial(draw_entropies, counts), "", 3.9, 2.6)
        for name, title, counts in histograms
    ]


def entropy_text(counts: Mapping[str, Sequence[int]]) -> str:
    """Number of tokens behind each line."""
    return f"Tokens: {', '.join(f'{name} {sum(bins)}' for name, bins in counts.items())}."


def probe_counts(run: ReportedRun) -> dict[str, dict[str, list[int]]]:
    """Histograms by teacher: all students, and the teacher on the first student's rollouts."""
    by_teacher: dict[str, dict[str, list[int]]] = {}
    for pair in run.pairs:
        if pair.histograms:
            counts = by_teacher.setdefault(pair.teacher, {})
            counts |= {f"student {pair.student}": pair.histograms["student"]} if "student" in pair.histograms else {}
            counts |= (
                {"teacher": counts.get("teacher") or pair.histograms["teacher"]} if "teacher" in pair.histograms else {}
            )
    return by_teacher


def pass_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A chart for each benchmark of each evaluation."""
    drawn = []
    for run, benchmark, rows in evaluated(runs):
        name = f"pass_at_k_{run.letter.lower()}_{slug(benchmark)}"
        drawn.append(Chart(name, f"{run.letter} {benchmark}", pass_text(rows), partial(draw_pass, rows), "", 3.5, 2.3))
    return drawn


def pass_text(rows: Sequence[EvalRow]) -> str:
    """The ends of each line, in words."""
    lines = []
    for row in rows:
        first, final = min(row.pass_at), max(row.pass_at)
        lines.append(
            f"{row.model} {row.pass_at[first].value:.1%} (k={first}) to {row.pass_at[final].value:.1%} (k={final})"
        )
    return "; ".join(lines) + "."


def evaluated(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, str, list[EvalRow]]]:
    """The rows of each run and benchmark."""
    groups = []
    for run in runs:
        rows = run.evaluation.rows if run.evaluation else []
        for name in dict.fromkeys(row.benchmark for row in rows):
            groups.append((run, name, [row for row in rows if row.benchmark == name]))
    return groups


def slug(name: str) -> str:
    """A name as a part of a file name."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def draw_entropies(counts: Mapping[str, Sequence[int]], figure: Figure, theme: Theme) -> None:
    """Draws the evaluation's entropy panel."""
    entropy_panel(figure.subplots(), counts)


def draw_pass(rows: Sequence[EvalRow], figure: Figure, theme: Theme) -> None:
    """Draws the evaluation's pass@k panel."""
    pass_panel(figure.subplots(), rows)
