"""Rewrite the prompts of a file under another template, for example the teacher's own (Rethinking, teacher-aligned).

  python -m opd_verl.data template train.parquet --template dapo --out train-dapo.parquet
  python -m opd_verl.data template train.parquet --template 'Problem: {question}' --mix 0.5 --seed 0 --out mixed.parquet

Only the last user message changes. Known templates, the template in extra_info.template and the templates of --strip
are removed; then the new template is applied. --mix rewrites a share of the rows, drawn at random, and leaves the
others unchanged: training on teacher-aligned prompts alone can lower the student's entropy too far.
"""

import argparse
import random
from pathlib import Path

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import parquet, read_table, replace_column, write_table
from opd_verl.data.prompts import questions, rows_of
from opd_verl.data.rows import templated
from opd_verl.data.templates import TEMPLATES, template_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `template`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="verl parquet")
    parser.add_argument("--out", type=parquet, required=True, help="parquet file to write")
    parser.add_argument("--template", required=True, help=f"{', '.join(TEMPLATES)} or your own text with {{question}}")
    parser.add_argument("--strip", action="append", default=[], help="a template that FILE uses and that is not known")
    parser.add_argument("--mix", type=float, default=1.0, help="share of rows to rewrite; default 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw; default 0")


def run(options: argparse.Namespace) -> None:
    """Rewrites the prompts and writes the rows. Prints the counts."""
    if not 0 < options.mix <= 1:
        raise ConfigError("--mix", options.mix, "not above 0 and at most 1", "give the share of rows to rewrite")
    template = template_text(options.template)
    table = read_table(options.file)
    bare = questions(table, options.file, *map(template_text, options.strip))
    chosen = share(table.num_rows, options.mix, options.seed)
    changed = [
        templated(row, question, template) if place in chosen else row
        for place, (row, question) in enumerate(zip(rows_of(table), bare, strict=True))
    ]
    for name in ("prompt", "extra_info"):
        table = replace_column(table, name, [row.get(name) for row in changed])
    write_table(table, options.out)
    print(f"read {table.num_rows}, rewritten {len(chosen)} -> {options.out}")


def share(rows: int, mix: float, seed: int) -> set[int]:
    """Draws the places of a share `mix` of the rows, to the nearest whole number."""
    return set(random.Random(seed).sample(range(rows), round(mix * rows)))
