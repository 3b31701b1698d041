"""What was left out, and why: counted, shown in part, and written whole beside the output."""

import sys
from collections import Counter
from pathlib import Path

from opd_verl.data.files import write_lines
from opd_verl.data.rows import BadRow, Row

SHOWN = 20


class BadRows:
    """The bad rows of one run. The first 20 are shown on stderr as they come."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        """What the numbers count: "line" or "row"."""
        self.found: list[Row] = []

    def add(self, number: int, bad: BadRow, row: Row | None) -> None:
        """Notes the row with this number, from 1."""
        self.found.append({self.unit: number, "reason": bad.reason, "detail": bad.detail, "content": row})
        if len(self.found) <= SHOWN:
            print(f"{self.unit} {number}: {bad}", file=sys.stderr)
        elif len(self.found) == SHOWN + 1:
            print("... more of them; all are in the .bad.jsonl file", file=sys.stderr)

    def write(self, path: Path) -> None:
        """Writes all of them, one JSON object a line."""
        write_lines(self.found, path)

    def __str__(self) -> str:
        return f"bad {len(self.found)}{by_reason(Counter(row['reason'] for row in self.found))}"


def by_reason(counts: Counter[str]) -> str:
    """Counts in brackets, the largest first; nothing if there are none."""
    found = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    return f" ({found})" if found else ""
