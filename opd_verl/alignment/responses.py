"""Judged responses as arrays, from a rollouts file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.alignment.tree.generation_tree import Ints
from opd_verl.sampling.judging import CORRECT
from opd_verl.sampling.read import ragged


def judged_responses(file: Path) -> Iterator[list[tuple[Ints, bool]]]:
    """For each row of the file its responses, and whether each is correct."""
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=["response_ids", "scores"])
            for responses, scores in zip(table["response_ids"], table["scores"], strict=True):
                rows = ragged(pa.chunked_array([responses.values]))
                yield list(zip(rows, (np.array(scores.values) > CORRECT).tolist(), strict=True))
