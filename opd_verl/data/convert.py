"""Turn a known set, or a file in verl's format, into verl parquet with every prompt under one template.

  python -m opd_verl.data convert gsm8k --split test --out data/gsm8k.parquet
  python -m opd_verl.data convert gsm8k --source gsm8k.jsonl --split test --out data/gsm8k.parquet     # no network
  python -m opd_verl.data convert dapo-math-17k.parquet --template dapo --out data/dapo.parquet        # verl's format

Columns: data_source, prompt, ability, reward_model {style, ground_truth}, extra_info {split, index, question, template,
solution, ...}. `question` is the bare question: a known instruction in the row is removed before the template is
applied. `index` is text, because verl does not join files in which a field has two types. A row that is in verl's
format already keeps its answer and its other columns.

Bad rows are shown on stderr, counted by reason, and written to OUT with the suffix .bad.jsonl. No row is lost silently.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from opd_verl.config.errors import ConfigError
from opd_verl.data.files import join, make_table, parquet, write_table
from opd_verl.data.report import BadRows
from opd_verl.data.rows import (
    BadRow,
    Row,
    answer_text,
    bare_question,
    column,
    info,
    is_verl,
    question_text,
    templated,
)
from opd_verl.data.sets import SETS, KnownSet
from opd_verl.data.source import Record, first, read_file, read_hub, unit
from opd_verl.data.templates import TEMPLATES, strip, template_text

ROWS_AT_ONCE = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `convert`."""
    parser.add_argument("set", metavar="NAME_OR_FILE", help=f"a file in verl's format, or one of {', '.join(SETS)}")
    parser.add_argument("--out", type=parquet, required=True, help="parquet file to write")
    parser.add_argument("--source", type=Path, help="local parquet, jsonl or json file of the set, in place of the hub")
    parser.add_argument(
        "--split", choices=("train", "test"), help="default: the set's first split, or the rows' own split"
    )
    parser.add_argument(
        "--template", default="boxed", help=f"{', '.join(TEMPLATES)} or your own text with {{question}}"
    )
    parser.add_argument("--limit", type=int, help="read only this many rows")
    parser.add_argument("--strict", action="store_true", help="any bad row is an error, and nothing is written")


def run(options: argparse.Namespace) -> None:
    """Converts the rows and writes them. Prints the counts."""
    known, template = SETS.get(options.set), template_text(options.template)
    if not known and (options.source or not Path(options.set).is_file()):
        problem = "not a known set" if options.source else "neither a known set nor a file"
        raise ConfigError("NAME_OR_FILE", options.set, problem, f"the sets are {', '.join(SETS)}")
    path: Path | None = options.source or (None if known else Path(options.set))
    records = read_file(path) if path else read_hub(SETS[options.set], _split(SETS[options.set], options))
    bad = BadRows(unit(path))
    table = convert(first(records, options.limit), known, options.split, template, bad)
    bad.write(options.out.with_suffix(".bad.jsonl"))
    read = table.num_rows + len(bad.rows)
    if not table.num_rows:
        remedy = "check the file, or name its data set: `convert gsm8k --source FILE`"
        raise ConfigError("file", str(path or options.set), f"no good row: read {read}, {bad}", remedy)
    if options.strict and bad.rows:
        raise ConfigError("--strict", True, f"read {read}, {bad}", "mend the rows, or leave --strict out")
    write_table(table, options.out)
    print(f"read {read}, written {table.num_rows}, {bad} -> {options.out}")


def _split(known: KnownSet, options: argparse.Namespace) -> str:
    split = options.split or next(iter(known.splits))
    if split not in known.splits:
        raise ConfigError("--split", split, f"{options.set} has only {', '.join(known.splits)}", "choose one of these")
    return split


def convert(
    records: Iterable[Record], known: KnownSet | None, split: str | None, template: str, bad: BadRows
) -> pa.Table:
    """Returns the good rows as a table, and adds the bad rows to `bad`."""
    default = next(iter(known.splits)) if known else "train"
    tables, rows = [make_table([])], []
    for number, row in _good(tqdm(records, unit=" rows", disable=None), bad):
        try:
            rows.append(_verl_row(row, number - 1, known, split, default, template))
        except BadRow as error:
            bad.add(number, error, row)
        # Rows are kept as Arrow's arrays, which need far less memory than dicts: sets have millions of rows.
        if len(rows) == ROWS_AT_ONCE:
            tables.append(make_table(rows))
            rows = []
    return join([*tables, make_table(rows)])


def _good(records: Iterable[Record], bad: BadRows) -> Iterator[tuple[int, Row]]:
    for number, row in records:
        if isinstance(row, BadRow):
            bad.add(number, row, None)
        else:
            yield number, row


def _verl_row(row: Row, index: int, known: KnownSet | None, split: str | None, default: str, template: str) -> Row:
    if is_verl(row):
        row = from_verl(row, known.repo if known else "unknown")
    elif known:
        row = from_raw(row, known)
    else:
        raise BadRow("not verl's format", f"no columns prompt and reward_model, only {', '.join(row)}")
    own = row["extra_info"]
    place = {"split": split or own.get("split") or default, "index": str(own.get("index", index))}
    return templated({**row, "extra_info": {**own, **place}}, own["question"], template)


def from_verl(row: Row, data_source: str) -> Row:
    """Returns a verl row with its bare question added and its answer checked. Raises BadRow."""
    reward_model = column(row, "reward_model")
    if not isinstance(reward_model, dict):
        raise BadRow("wrong type", f"reward_model is of type {type(reward_model).__name__}")
    question = question_text(bare_question(row))
    answer = answer_text(reward_model.get("ground_truth"))
    named = {"data_source": row.get("data_source") or data_source, "ability": row.get("ability") or "math"}
    reward = {**reward_model, "style": "rule", "ground_truth": answer}
    own = {name: value for name, value in info(row).items() if value is not None}
    return {**row, **named, "reward_model": reward, "extra_info": {**own, "question": question}}


def from_raw(row: Row, known: KnownSet) -> Row:
    """Returns a raw row of a known set in verl's format, not yet under a template. Raises BadRow."""
    question = question_text(strip(question_text(known.question(row))))
    answer, solution = answer_text(known.answer(row)), known.solution(row)
    kept = {name: str(row[name]) for name in known.keep if row.get(name) is not None}
    return {
        "data_source": known.repo,
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {**kept, "question": question, "solution": solution},
    }
