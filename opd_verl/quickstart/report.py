"""Reports the quickstart's result: a table on the terminal and as JSON, and the training curves as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from opd_verl.eval.estimators import gap_recovery


@dataclass(frozen=True)
class ModelResult:
    """Measurements of a model on held-out problems."""

    accuracy: float
    """avg@8 at temperature 1, 0 to 1."""
    greedy: float
    """Greedy accuracy, 0 to 1."""
    length: float
    """Mean response tokens at temperature 1."""
    reverse_kl: float
    """Mean exact KL(model || teacher) on the model's own responses, nats per token."""
    overlap: dict[int, float]
    """Mean share of the top k that model and teacher have in common, 0 to 1, by k."""


@dataclass(frozen=True)
class QuickstartResult:
    """One quickstart run."""

    recipe: str
    seed: int
    steps: int
    before: ModelResult
    after: ModelResult
    teacher: ModelResult
    seconds: float
    """Wall time of the whole run, without the installation."""

    @property
    def gap_recovery(self) -> float | None:
        """Gap recovery rate (Rethinking): `(after - before) / (teacher - before)` of `accuracy`; None without a gap."""
        return gap_recovery(self.before.accuracy, self.after.accuracy, self.teacher.accuracy)

    @property
    def gap_text(self) -> str:
        """The gap recovery rate in percent, or "n/a"."""
        return "n/a" if self.gap_recovery is None else f"{self.gap_recovery:.1%}"


def print_table(result: QuickstartResult, console: Console) -> None:
    """Prints student before, student after and teacher side by side."""
    table = Table(title=f"recipe={result.recipe}, seed {result.seed}, {result.steps} steps")
    for column in ("held-out problems", "student before", "student after", "teacher"):
        table.add_column(column, justify="left" if column == "held-out problems" else "right")
    columns = (result.before, result.after, result.teacher)
    for label, name, form in (
        ("accuracy, avg@8 at temperature 1", "accuracy", "{:.1%}"),
        ("accuracy, greedy", "greedy", "{:.1%}"),
        ("reverse KL, nats/token", "reverse_kl", "{:.4f}"),
        ("response length, tokens", "length", "{:.1f}"),
    ):
        table.add_row(label, *(form.format(getattr(column, name)) for column in columns))
    for k in result.teacher.overlap:
        table.add_row(f"overlap ratio, top {k}", *(f"{column.overlap[k]:.3f}" for column in columns))
    table.add_section()
    table.add_row("gap recovery rate", "", result.gap_text, "")
    table.add_row("wall time", "", f"{result.seconds / 60:.1f} min", "")
    console.print(table)


def write_json(result: QuickstartResult, path: Path) -> None:
    """Writes the table as JSON, with the gap recovery rate (null without a gap)."""
    path.write_text(json.dumps(asdict(result) | {"gap_recovery": result.gap_recovery}, indent=2) + "\n")


def draw_curves(steps: Sequence[dict[str, float]], result: QuickstartResult, path: Path) -> None:
    """Draws reverse KL, accuracy and response length of the training rollouts by step, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    number = [step["step"] for step in steps]
    panels[1].axhline(result.teacher.accuracy, color="tab:green", linestyle="--", label="teacher")
    panels[1].axhline(result.before.accuracy, color="tab:gray", linestyle=":", label="student before")
    for axes, key, title, top in zip(
        panels,
        ("opd/reverse_kl", "critic/score/mean", "response_length/mean"),
        ("sampled reverse KL, nats/token", "accuracy of the rollouts (temperature 1)", "response length, tokens"),
        (None, 1.0, None),
        strict=True,
    ):
        axes.plot(number, [step.get(key, float("nan")) for step in steps], color="tab:blue")
        axes.set(title=title, xlabel="step", ylim=(0, top))
        axes.grid(alpha=0.3)
    panels[1].legend(loc="lower right")
    figure.suptitle(f"recipe={result.recipe}, seed {result.seed}: gap recovery {result.gap_text}")
    figure.savefig(path, dpi=130)
    plt.close(figure)
