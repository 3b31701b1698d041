"""Remove rows whose question is also in other files, and the file's own duplicates (Rethinking C.3).

  python -m opd_verl.data dedup deepmath.parquet --against dapo.parquet math500.parquet --out deepmath-deduped.parquet

Questions are compared without template, white space, LaTeX spacing, `$` and punctuation, in lower case. Two questions
are near-duplicates if the Jaccard similarity of their word 5-grams is at least --threshold. The first of several
duplicates within FILE stays. A long question that differs only in its numbers can count as a near-duplicate: look at
the removed rows, which are written to OUT with the suffix .removed.jsonl, each with its match and similarity.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import parquet, read_table, take, write_lines, write_table
from opd_verl.data.matching import Match, duplicates
from opd_verl.data.prompts import questions
from opd_verl.data.rows import Row


class Origin(NamedTuple):
    """The place of a question."""

    file: str
    row: int
    """Row number, from 1."""
    question: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `dedup`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="verl parquet")
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="OTHER", help="verl parquet files")
    parser.add_argument("--out", type=parquet, required=True, help="parquet file to write")
    parser.add_argument("--threshold", type=float, default=0.8, help="similarity of near-duplicates; default 0.8")
    parser.add_argument("--exact", action="store_true", help="leave near-duplicates in")
    parser.add_argument("--keep-internal", action="store_true", help="leave duplicates within FILE in")


def run(options: argparse.Namespace) -> None:
    """Removes the duplicates and writes the other rows. Prints the counts."""
    if not 0 < options.threshold <= 1:
        raise ConfigError("--threshold", options.threshold, "not above 0 and at most 1", "0.8 is the default")
    if options.keep_internal and not options.against:
        raise ConfigError("--keep-internal", True, "nothing is left to compare", "give --against, or leave it out")
    table = read_table(options.file)
    against = list(chain.from_iterable(map(_origins, options.against)))
    own = [Origin(str(options.file), row, text) for row, text in enumerate(questions(table, options.file), start=1)]
    threshold = None if options.exact else options.threshold
    matches = duplicates([q.question for q in own], [q.question for q in against], threshold, not options.keep_internal)
    kept = [place for place in range(len(own)) if place not in matches]
    if not kept:
        raise ConfigError("FILE", str(options.file), f"all {len(own)} rows are duplicates", "see --against")
    write_lines(removed(matches, own, against), options.out.with_suffix(".removed.jsonl"))
    write_table(take(table, kept), options.out)
    print(f"read {len(own)}, written {len(kept)}, removed {summary(matches, len(against))} -> {options.out}")


def _origins(path: Path) -> list[Origin]:
    table = read_table(path, only=True)
    return [Origin(str(path), row, text) for row, text in enumerate(questions(table, path), start=1)]


def removed(matches: dict[int, Match], own: Sequence[Origin], against: Sequence[Origin]) -> list[Row]:
    """Returns the removed rows, each with the row that it matches."""
    every = [*against, *own]
    return [
        {
            "row": own[place].row,
            "question": own[place].question,
            "match": match.kind,
            "similarity": round(match.score, 4),
            "matches": every[match.place]._asdict(),
        }
        for place, match in matches.items()
    ]


def summary(matches: dict[int, Match], against: int) -> str:
    """Counts the matches by the file and the kind; `against`: number of questions in the other files."""
    kinds = Counter((match.place >= against, match.kind) for match in matches.values())
    counts = [kinds[inside, kind] for inside in (False, True) for kind in ("exact", "near")]
    return "{} (against others: exact {}, near {}; within FILE: exact {}, near {})".format(len(matches), *counts)
