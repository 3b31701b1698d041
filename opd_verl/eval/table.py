"""The rows as a table: JSON with every number, Markdown, and a short table on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from opd_verl.eval.config import EvalConfig
from opd_verl.eval.entropies import EntropySummary
from opd_verl.eval.prepare import PreparedEvaluation
from opd_verl.eval.rows import EvalRow
from opd_verl.metrics.estimate import Estimate, percent
from opd_verl.metrics.thresholds import BIN_WIDTH, HIGH_ENTROPY
from opd_verl.utils.markdown import markdown_table

NOT_RESULTS = ("models", "benchmarks", "teacher", "before", "out", "workers")
"""Settings that are elsewhere in the table or change no number."""
Columns = dict[str, Callable[[EvalRow], str]]


def _share(number: float | None) -> str:
    return "" if number is None else f"{number:.1%}"


def columns(n: int, ks: Sequence[int]) -> Columns:
    """Functions that make a row's cell, by heading."""
    return {
        "benchmark": lambda row: row.benchmark,
        "model": lambda row: row.model,
        f"avg@{n} %": lambda row: percent(row.accuracy),
        **{f"pass@{k} %": lambda row, k=k: percent(row.pass_at[k]) for k in ks if k > 1},
        f"maj@{n} %": lambda row: percent(row.majority),
        "tokens": lambda row: f"{row.length:.1f}",
        "truncated": lambda row: _share(row.truncated),
        "no answer": lambda row: _share(row.unanswered),
        "distinct answers": lambda row: f"{row.distinct:.3f}",
        "answer entropy": lambda row: f"{row.answer_entropy:.3f}",
        "token entropy": lambda row: f"{row.entropy.mean:.3f}" if row.entropy else "",
        f"tokens >= {HIGH_ENTROPY} nats": lambda row: _share(row.entropy.high_share) if row.entropy else "",
        "gap recovery": lambda row: _share(row.gap_recovery),
    }


def filled_columns(headings: Columns, rows: Sequence[EvalRow]) -> Columns:
    """The columns that are not empty."""
    return {heading: cell for heading, cell in headings.items() if any(cell(row) for row in rows)}


def to_json(rows: Sequence[EvalRow], prepared: PreparedEvaluation, config: EvalConfig) -> dict[str, object]:
    """Settings, models, benchmarks and rows. The content is independent of the time and of the results' folder."""
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_RESULTS}
    return {
        "settings": settings | {"ks": config.pass_ks},
        "models": {name: model.fingerprint for name, model in prepared.models.items()},
        "benchmarks": {
            name: {"path": str(benchmark.path), "digest": benchmark.digest, "problems": len(benchmark.rows)}
            for name, benchmark in prepared.benchmarks.items()
        },
        "teacher": prepared.teacher,
        "before": prepared.before,
        "entropy_bin_width": BIN_WIDTH,
        "rows": [asdict(row) for row in rows],
    }


def rows_from_json(table: Mapping[str, Any]) -> list[EvalRow]:
    """The rows of `to_json`. Raises KeyError or TypeError if the table has another form."""
    return [
        EvalRow(
            **dict(content)
            | {
                "accuracy": Estimate(**content["accuracy"]),
                # JSON has no integer keys.
                "pass_at": {int(k): Estimate(**estimate) for k, estimate in content["pass_at"].items()},
                "majority": Estimate(**content["majority"]),
                "entropy": None if content["entropy"] is None else EntropySummary(**content["entropy"]),
            }
        )
        for content in table["rows"]
    ]


def to_markdown(rows: Sequence[EvalRow], config: EvalConfig) -> str:
    """All columns that are not empty, and the settings in a line below."""
    filled = filled_columns(columns(config.n, config.pass_ks), rows)
    table = markdown_table(list(filled), [[cell(row) for cell in filled.values()] for row in rows])
    return f"{table}\n\n{caption(config)}\n"


def caption(config: EvalConfig) -> str:
    """The settings behind the numbers, and the meaning of the brackets."""
    how = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}, top-p {config.top_p:g}"
    preset = f"preset {config.preset}: " if config.preset else ""
    return (
        f"{preset}n = {config.n}, {how}, at most {config.max_tokens} tokens, seed {config.seed}. In brackets: 95% "
        f"confidence intervals, {config.resamples} bootstrap replicates over problems."
    )


def print_table(rows: Sequence[EvalRow], config: EvalConfig, console: Console) -> None:
    """Prints the columns that fit 80 characters: accuracy with its interval, other shares without; no entropies."""
    n = config.n
    short: Columns = {
        "benchmark": lambda row: row.benchmark,
        "model": lambda row: row.model,
        f"avg@{n} %": lambda row: percent(row.accuracy),
        f"pass@{n}": lambda row: _share(row.pass_at[n].value) if n > 1 and n in row.pass_at else "",
        f"maj@{n}": lambda row: _share(row.majority.value) if n > 1 else "",
        "tokens": lambda row: f"{row.length:.1f}",
        "cut": lambda row: _share(row.truncated),
        "distinct": lambda row: f"{row.distinct:.2f}" if n > 1 else "",
        "gap": lambda row: _share(row.gap_recovery),
    }
    table = Table(caption=caption(config), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (filled := filled_columns(short, rows)):
        table.add_column(heading, justify="left" if heading in ("benchmark", "model") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in filled.values()))
    console.print(table)
