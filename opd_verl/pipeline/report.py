"""Reports the pipeline's result: a table across stages on the terminal, as Markdown and as JSON, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from opd_verl.metrics.estimate import Estimate, percent
from opd_verl.pipeline.compare import StageRow, as_json
from opd_verl.pipeline.prepare import PreparedStage
from opd_verl.utils.files import whole, write_json, write_text
from opd_verl.utils.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = {"critic/score/mean": "accuracy of the rollouts", "opd/reverse_kl": "sampled reverse KL, nats/token"}


def cells(row: StageRow) -> dict[str, str]:
    """Returns the row's cells by heading."""
    return {
        "benchmark": row.benchmark,
        "model": row.model,
        "recipe": row.recipe,
        "from": row.student,
        "teacher": row.teacher,
        "steps": str(row.steps or ""),
        "minutes": f"{row.minutes:.1f}" if row.minutes else "",
        "avg@n %": percent(Estimate(*row.accuracy)),
        "pass@n %": percent(Estimate(*row.pass_at_n)),
        "tokens": f"{row.tokens:.1f}",
        "truncated": f"{row.truncated:.1%}",
        "reverse KL": "" if row.reverse_kl is None else "{:.3f} -> {:.3f}".format(*row.reverse_kl),
        "gap recovery": "" if row.gap_recovery is None else f"{row.gap_recovery:.1%}",
    }


def short_cells(row: StageRow) -> dict[str, str]:
    """Returns the cells that fit a terminal of 80 columns, by heading."""
    value, low, high = (100 * share for share in row.accuracy)
    return {
        "model": row.model,
        "recipe": row.recipe,
        "steps": str(row.steps or ""),
        "avg@n %": f"{value:.1f} ± {(high - low) / 2:.1f}",
        "reverse KL": "" if row.reverse_kl is None else "{:.2f} -> {:.2f}".format(*row.reverse_kl),
        "recovery": cells(row)["gap recovery"],
    }


def markdown(rows: Sequence[StageRow]) -> str:
    """Returns the table as Markdown."""
    lines = [cells(row) for row in rows]
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines]) + "\n"


def show(rows: Sequence[StageRow], console: Console) -> None:
    """Prints a table per benchmark; ± is half of the 95% confidence interval."""
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        table = Table(title=benchmark)
        for heading in short_cells(rows[0]):
            table.add_column(heading, justify="left" if heading in ("model", "recipe") else "right", no_wrap=True)
        for row in rows:
            if row.benchmark == benchmark:
                table.add_row(*short_cells(row).values())
        console.print(table)


def draw(rows: Sequence[StageRow], stages: Sequence[PreparedStage], path: Path) -> None:
    """Draws the accuracy of every model with its interval, and the training curves of all stages, one after another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    bars, *panels = figure.subplots(1, 1 + len(CURVES))
    first = [row for row in rows if row.benchmark == rows[0].benchmark]
    value, low, high = zip(*(row.accuracy for row in first), strict=True)
    error = [[v - at for v, at in zip(value, low, strict=True)], [at - v for v, at in zip(value, high, strict=True)]]
    bars.barh([row.model for row in first], value, xerr=error, color="tab:blue", alpha=0.7)
    bars.invert_yaxis()
    bars.set(title=f"avg@n on {first[0].benchmark}", xlim=(0, 1))
    curves = {stage.name: stage.folder.steps() for stage in stages}
    for axes, (key, title) in zip(panels, CURVES.items(), strict=True):
        draw_curves(axes, curves, key)
        axes.set(title=title, xlabel="training step, all stages")
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def draw_curves(axes: "Axes", curves: Mapping[str, list[dict[str, float]]], key: str) -> None:
    """Draws one metric over the steps of all stages, a colour per stage."""
    offset = 0
    for number, (name, steps) in enumerate(curves.items()):
        places = [offset + step["step"] for step in steps if key in step]
        if places:
            axes.plot(places, [step[key] for step in steps if key in step], label=name, marker=".", color=f"C{number}")
        offset += int(steps[-1]["step"]) if steps else 0
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def write_report(rows: Sequence[StageRow], stages: Sequence[PreparedStage], out: Path) -> None:
    """Writes `table.md`, `table.json` (without wall times) and `stages.png`."""
    write_text(out / "table.md", markdown(rows))
    draw(rows, stages, out / "stages.png")
    write_json(out / "table.json", as_json(list(rows)))
