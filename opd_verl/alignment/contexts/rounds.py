"""Asks a model in rounds until every row has the texts that it needs.

    FOLDER/round-00.parquet, round-01.parquet, ...       judged responses to the rows that still lacked a text

Each round is a rollouts file (`opd_verl.sampling.rollouts`): a run that is killed resumes there, and ends with the same
responses.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.data.files import take
from opd_verl.data.judged import Judged
from opd_verl.sampling.judging import CORRECT
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Sampler, prepare_job
from opd_verl.sampling.shards import request_seed


def round_sizes(trials: int, per_round: int) -> list[int]:
    """Responses per row in each round; the last round has the rest."""
    return [min(per_round, trials - done) for done in range(0, trials, per_round)]


def ask_in_rounds(
    model: Model,
    rows: pa.Table,
    sampler: Sampler,
    sizes: Sequence[int],
    folder: Path,
    lacks: Callable[[Judged], bool],
) -> list[Judged]:
    """All responses to each row, in the order of the rounds; scores are 1.0 (correct) and 0.0.

    Args:
        sampler: `n` and `seed` of its settings are replaced; every round and every folder's name has its own seed.
        sizes: responses per row in each round.
        lacks: whether a row with these responses is asked again.
    """
    responses = [Judged() for _ in range(len(rows))]
    for number, size in enumerate(sizes):
        asked = [place for place, judged in enumerate(responses) if lacks(judged)]
        if not asked:
            break
        said = f"{folder.name}, round {number + 1} of at most {len(sizes)}: {len(asked)} of {len(rows)} are asked"
        print(said, file=sys.stderr, flush=True)
        # The folder's name is part of the seed: two models, or two rounds, never draw with the same random numbers.
        seed = request_seed(sampler.settings.seed, f"contexts/{folder.name}", number)
        settings = replace(sampler.settings, n=size, seed=seed)
        job = prepare_job(model, take(rows, asked), settings, folder / f"round-{number:02d}.parquet", folder.name)
        replace(sampler, settings=settings).run([job])
        for place, row in zip(asked, _read(job.out), strict=True):
            _add(responses[place], row)
    return responses


def _read(path: Path) -> list[Judged]:
    rows = pq.read_table(path, columns=["responses", "finished", "scores"]).to_pylist()
    return [
        Judged(row["responses"], row["finished"], [float(score > CORRECT) for score in row["scores"]]) for row in rows
    ]


def _add(judged: Judged, more: Judged) -> None:
    judged.responses += more.responses
    judged.finished += more.finished
    judged.scores += more.scores
