"""Fill in the solutions that a self-distilling teacher reads (opd.context, Unmasking E.9) from judged rollouts.

  python -m opd_verl.data contexts train.parquet --rollouts rollouts.parquet --correct 3 --wrong 1 --needs 3c \\
      --out train-contexts.parquet

extra_info.correct and extra_info.wrong get the first correct and the first wrong responses of each question, in the
order of the files and of the rollouts in them. A response that was cut at the length limit is left out, and no text is
taken twice. --use-solution puts the data set's own solution first. --summaries fills extra_info.correct_summaries and
extra_info.wrong_summaries from files whose responses are summaries, each with the score of the summarised response.
--large fills extra_info.correct_large from the correct responses of a larger model.

--needs CONTEXT removes each row that has too few texts for that context. Removed rows are counted, and written to OUT
with the suffix .removed.jsonl.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from opd_verl.config.errors import ConfigError
from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.data.files import parquet, read_table, replace_column, take, write_lines, write_table
from opd_verl.data.judged import Judged, read_judged
from opd_verl.data.prompts import KEYS, keys, rows_of
from opd_verl.data.rows import Row, info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `contexts`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="verl parquet")
    parser.add_argument("--rollouts", type=Path, nargs="+", required=True, help="judged rollouts of FILE's prompts")
    parser.add_argument(
        "--summaries", type=Path, nargs="+", default=[], help="judged rollouts with summaries as responses"
    )
    parser.add_argument("--large", type=Path, nargs="+", default=[], help="judged rollouts of a larger model")
    parser.add_argument("--out", type=parquet, required=True, help="parquet file to write")
    parser.add_argument("--correct", type=int, default=3, help="largest number of correct texts per row; default 3")
    parser.add_argument("--wrong", type=int, default=1, help="largest number of wrong texts per row; default 1")
    parser.add_argument("--use-solution", action="store_true", help="extra_info.solution is the first correct text")
    parser.add_argument("--needs", choices=tuple(CONTEXT_HOOKS), help="keep rows with enough texts for this context")
    parser.add_argument("--key", choices=KEYS, default=KEYS[0], help="field that matches the rows of two files")


def run(options: argparse.Namespace) -> None:
    """Fills the rows and writes them. Prints the counts."""
    if min(options.correct, options.wrong) < 0:
        raise ConfigError("--correct/--wrong", (options.correct, options.wrong), "below 0", "give 0 or more")
    table = read_table(options.file)
    names = keys(table, options.file, options.key)
    rollouts = [read_judged(path, options.key) for path in options.rollouts]
    filled = _filled(table, names, rollouts, options)
    lacking = {place: why for place, extra in enumerate(filled) if (why := lacks(extra, options.needs))}
    kept = [place for place in range(table.num_rows) if place not in lacking]
    without = sum(not any(name in file for file in rollouts) for name in names)
    if not kept:
        problem = f"no row of {options.file} has enough texts ({without} of {len(names)} have no rollouts)"
        raise ConfigError("--needs", options.needs, problem, "raise --correct or --wrong, or add rollouts")
    lines: list[Row] = [{"row": place + 1, "reason": why, "question": names[place]} for place, why in lacking.items()]
    write_lines(lines, options.out.with_suffix(".removed.jsonl"))
    write_table(take(replace_column(table, "extra_info", filled), kept), options.out)
    totals = [sum(len(filled[place][name]) for place in kept) for name in ("correct", "wrong")]
    print(
        f"read {len(names)}, without rollouts {without}, removed {len(lacking)}, written {len(kept)} "
        f"with {totals[0]} correct and {totals[1]} wrong texts -> {options.out}"
    )


def _filled(
    table: pa.Table, names: Sequence[str], rollouts: Sequence[dict[str, Judged]], options: argparse.Namespace
) -> list[Row]:
    """Returns every row's `extra_info`, with the texts filled in."""
    own = [info(row) for row in rows_of(table)]
    if options.use_solution and not any(extra.get("solution") for extra in own):
        problem = f"no row of {options.file} has extra_info.solution"
        raise ConfigError("--use-solution", True, problem, "`convert` fills it for sets that have solutions")
    summaries = [read_judged(path, options.key) for path in options.summaries]
    large = [read_judged(path, options.key) for path in options.large]
    filled = []
    for extra, name in zip(own, names, strict=True):
        first = extra.get("solution") if options.use_solution else None
        lists = fill(name, rollouts, first, options.correct, options.wrong, "")
        lists |= fill(name, summaries, None, options.correct, options.wrong, "_summaries") if summaries else {}
        lists |= {"correct_large": fill(name, large, None, options.correct, 0, "")["correct"]} if large else {}
        filled.append({**extra, **lists})
    return filled


def fill(
    key: str, files: Sequence[Mapping[str, Judged]], own: str | None, correct: int, wrong: int, kind: str
) -> dict[str, list[str]]:
    """Returns a row's lists `correct<kind>` and `wrong<kind>`; the text `own`, if given, is the first correct text."""
    judged = [file[key] for file in files if key in file]
    good = [*filter(None, [own]), *(text for rollouts in judged for text in finished_texts(rollouts, 1.0))]
    bad = [text for rollouts in judged for text in finished_texts(rollouts, 0.0)]
    return {f"correct{kind}": list(dict.fromkeys(good))[:correct], f"wrong{kind}": list(dict.fromkeys(bad))[:wrong]}


def finished_texts(judged: Judged, score: float) -> list[str]:
    """Returns the finished, non-empty responses with this score, in their order."""
    responses = zip(judged.responses, judged.finished, judged.scores, strict=True)
    return [text for text, finished, scored in responses if finished and scored == score and text.strip()]


def lacks(extra_info: Row, context: str | None) -> str:
    """Names the texts that the context lacks in this row. Empty: the row has all texts, or no context is named."""
    if context is None:
        return ""
    try:
        CONTEXT_HOOKS[context]({"extra_info": extra_info, "index": extra_info.get("index")})
    except ValueError as error:
        return str(error)
    return ""
