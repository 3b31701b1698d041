"""Reports rows that were left out: counts by reason, the first 20 rows on stderr, all rows in a file."""

import sys
from collections import Counter
from pathlib import Path

from opd_verl.data.files import write_lines
from opd_verl.data.rows import BadRow, Row

SHOWN = 20


class BadRows:
    """The bad rows of one command. The first 20 are shown on stderr as they come."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        """Unit of the numbers: "line" or "row"."""
        self.rows: list[Row] = []

    def add(self, number: int, bad: BadRow, row: Row | None) -> None:
        """Notes a bad row; `number` counts from 1."""
        self.rows.append({self.unit: number, "reason": bad.reason, "detail": bad.detail, "content": row})
        if len(self.rows) <= SHOWN:
            print(f"{self.unit} {number}: {bad}", file=sys.stderr)
        elif len(self.rows) == SHOWN + 1:
            print("... and more: all are in the .bad.jsonl file", file=sys.stderr)

    def write(self, path: Path) -> None:
        """Writes all bad rows, one JSON object per line."""
        write_lines(self.rows, path)

    def __str__(self) -> str:
        return f"bad {len(self.rows)}{by_reason(Counter(row['reason'] for row in self.rows))}"


def by_reason(counts: Counter[str]) -> str:
    """Returns the counts in brackets, the largest first; "" without counts."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    return f" ({reasons})" if reasons else ""
