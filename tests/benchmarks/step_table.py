"""The measurements as markdown: one table per group, then the budgets of tests/benchmarks/README.md 3."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from step_measure import MIB, spread
from step_variants import OURS, PLAIN, TITLES, VARIANTS

COLUMNS = (
    "variant",
    "dtype",
    "T",
    "median s",
    "spread",
    "/ ours",
    "ours /",
    "peak MiB",
    "loss err",
    "dH err",
    "dW err",
)
NONE = "-"


class Key(NamedTuple):
    """One measurement: a variant in a dtype at a number of tokens."""

    name: str
    dtype: str
    tokens: int


@dataclass(frozen=True)
class Results:
    """Measurements: seconds of every round, peak bytes (or the reason for none), relative errors (loss, dH, dW)."""

    seconds: dict[Key, list[float]] = field(default_factory=dict)
    peaks: dict[Key, int | str] = field(default_factory=dict)
    errors: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def median(self, key: Key) -> float | None:
        """Returns the median seconds; None: not measured."""
        return statistics.median(self.seconds[key]) if key in self.seconds else None

    def has(self, key: Key) -> bool:
        """Says whether the row of this key has any content."""
        return key in self.seconds or key in self.peaks or key.name in self.missing

    def peak(self, key: Key) -> float | None:
        """Returns the peak bytes; None: there is no number."""
        peak = self.peaks.get(key)
        return peak if isinstance(peak, int) else None


class RatioBudget(NamedTuple):
    """The largest allowed ratio of `ours` to `peer`, by dtype."""

    quantity: str
    ours: str
    peer: str
    limits: dict[str, float]


def both(limit: float) -> dict[str, float]:
    """Returns one limit for both dtypes."""
    return {"float32": limit, "bfloat16": limit}


BUDGETS = {
    "cpu": (
        RatioBudget("time", "ours", "verl", {"float32": 0.85, "bfloat16": 0.75}),
        RatioBudget("time", "ours", "floor", {"float32": 1.05, "bfloat16": 1.30}),
        RatioBudget("time", "ours_full", "trl", {"float32": 0.60, "bfloat16": 0.42}),
        RatioBudget("time", "ours_full", "liger_compiled", both(0.80)),
        RatioBudget("peak", "ours", "verl", both(0.40)),
        RatioBudget("peak", "ours_full", "trl", both(0.15)),
    ),
    "cuda": (
        RatioBudget("time", "ours", "floor", both(1.4)),
        RatioBudget("time", "ours_full", "floor_full", both(1.4)),
        RatioBudget("peak", "ours", "verl", both(0.25)),
    ),
}
GROWTH_LIMIT = 1.05
FLOAT32_ERROR_LIMIT = 1e-5


def ratio(above: float | None, below: float | None) -> float | None:
    """Returns above / below; None where either was not measured."""
    return None if above is None or not below else above / below


def shown(value: float | None, form: str) -> str:
    """Formats a number, or the sign for no number."""
    return NONE if value is None else format(value, form)


def row(cells: tuple[str, ...] | list[str]) -> str:
    """Returns one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def cells_of(results: Results, key: Key) -> list[str]:
    """Returns the row of one variant, dtype and T."""
    variant = VARIANTS[key.name]
    ours = results.median(key._replace(name=OURS[variant.group]))
    mine = results.median(key)
    peak = results.peaks.get(key)
    relative = results.errors.get(key[:2])
    return [
        variant.text,
        key.dtype,
        str(key.tokens),
        "not installed" if key.name in results.missing else shown(mine, ".3f"),
        NONE if mine is None else f"{spread(results.seconds[key]):.0%}",
        shown(ratio(mine, ours), ".2f"),
        shown(ratio(ours, mine), ".2f"),
        peak if isinstance(peak, str) else shown(None if peak is None else peak / MIB, ".0f"),
        *([NONE] * 3 if relative is None else [f"{error:.1e}" for error in relative]),
    ]


def budget_rows(results: Results, plan: list[Key], device: str) -> Iterator[list[str]]:
    """Yields the time and memory budgets of the device, for each measured dtype and T."""
    for budget in BUDGETS[device]:
        for key in plan:
            read = results.median if budget.quantity == "time" else results.peak
            if key.name == budget.ours and read(key) is not None:
                measured = ratio(read(key), read(key._replace(name=budget.peer)))
                what = f"{budget.quantity}: {budget.ours} / {budget.peer}"
                yield [what, key.dtype, str(key.tokens), *verdict(measured, budget.limits[key.dtype], ".3f")]


def growth_rows(results: Results, plan: list[Key]) -> Iterator[list[str]]:
    """Yields the growth of our peak from the fewest tokens to the most."""
    for name, dtype in dict.fromkeys(key[:2] for key in plan if key.name in OURS.values()):
        peaks = {key.tokens: results.peak(key) for key in plan if key[:2] == (name, dtype) and key in results.peaks}
        if len(peaks) > 1:
            few, many = min(peaks), max(peaks)
            measured = ratio(peaks[many], peaks[few])
            yield [f"peak growth: {name}", dtype, f"{few} to {many}", *verdict(measured, GROWTH_LIMIT, ".3f")]


def error_rows(results: Results) -> Iterator[list[str]]:
    """Yields the gradients' relative errors: in float32 against a number, in bfloat16 against the plain path."""
    for (name, dtype), relative in results.errors.items():
        group = VARIANTS[name].group
        plain = results.errors.get((PLAIN[group], dtype))
        if name != OURS[group]:
            continue
        if dtype == "float32":
            yield [f"gradient error: {name}", dtype, NONE, *verdict(max(relative[1:]), FLOAT32_ERROR_LIMIT, ".1e")]
        elif plain is not None:
            for place, gradient in ((1, "dH"), (2, "dW")):
                what = f"{gradient} error: {name}, limit = plain path"
                yield [what, dtype, NONE, *verdict(relative[place], plain[place], ".2e")]


def verdict(measured: float | None, limit: float, form: str) -> tuple[str, str, str]:
    """Returns target, measured value, and whether the target is met, judged by the digits that are shown."""
    if measured is None:
        return f"<= {limit:{form}}", NONE, "not measured"
    target, value = format(limit, form), format(measured, form)
    return f"<= {target}", value, "met" if float(value) <= float(target) else "missed"


def markdown(results: Results, plan: list[Key], device: str, heading: str) -> str:
    """Returns the whole report; `plan` lists all measurements in the order of the tables."""
    lines = [heading]
    for group, title in TITLES.items():
        keys = [key for key in plan if VARIANTS[key.name].group == group and results.has(key)]
        if keys:
            table = [COLUMNS, ["---"] * len(COLUMNS), *(cells_of(results, key) for key in keys)]
            lines += ["", f"## {title}", "", *map(row, table)]
    budgets = [*budget_rows(results, plan, device), *growth_rows(results, plan), *error_rows(results)]
    table = [("budget", "dtype", "T", "target", "measured", "verdict"), ["---"] * 6, *budgets]
    lines += ["", "## Budgets (tests/benchmarks/README.md 3)", "", *map(row, table)]
    return "\n".join(lines) + "\n"
