"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, without a line break at the end."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *lines))
