"""Judged responses as arrays, from a rollouts file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.alignment.tree.generation_tree import Ints, PackedRollouts
from opd_verl.sampling.judging import CORRECT
from opd_verl.sampling.read import ragged

Responses = Sequence[tuple[Ints, bool]]
"""Tokens of each response of a question, and whether it is correct."""


def judged_responses(file: Path) -> Iterator[Responses]:
    """The responses of each row of the file, one row group in memory at a time."""
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=["response_ids", "scores"])
            for responses, scores in zip(table["response_ids"], table["scores"], strict=True):
                rows = ragged(pa.chunked_array([responses.values]))
                yield list(zip(rows, (np.array(scores.values) > CORRECT).tolist(), strict=True))


def initial_rollouts(responses: Responses) -> PackedRollouts:
    """The responses as rollouts that were launched with nothing given."""
    tokens, correct = [tokens for tokens, _ in responses], [correct for _, correct in responses]
    return PackedRollouts.of(tokens, [0] * len(responses), correct)
