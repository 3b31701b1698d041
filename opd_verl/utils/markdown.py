"""Markdown tables, and an interval as text."""

from collections.abc import Sequence

from opd_verl.metrics.estimate import Estimate


def percent(interval: Estimate) -> str:
    """`43.8 [40.1, 47.5]`."""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, without a line break at the end."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *lines))
