"""Responses from the data set instead of the student's own (objectives/README.md 6): GKD and knowledge distillation.

With probability `opd.off_policy.share` a rollout takes its response from the data set, from the column
`opd.off_policy.field`: a list of responses, each a list of token ids or a text. `python -m opd_verl.data rollouts`
writes such a column.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from tensordict import TensorDict
from transformers import PreTrainedTokenizerBase

DataResponse = str | Sequence[int]
"""A text, or token ids."""


def draw(seed: int, rollout: str) -> float:
    """A number in [0, 1) that belongs to this rollout: equal in every run, on every worker and after a resume."""
    return zlib.crc32(f"off_policy/{seed}/{rollout}".encode()) / 2**32


def candidates(sample: Mapping[str, object], field: str) -> list[DataResponse]:
    """The responses that the sample holds, without empty responses.

    Raises:
        ValueError: the sample has no such column, or it holds no response.
    """
    value = sample.get(field)
    # A single text would be iterated letter by letter: only a list of responses counts.
    several = [] if value is None or isinstance(value, str) else cast(Iterable[DataResponse], value)
    responses = [response for response in several if len(response)]
    if not responses:
        raise ValueError(
            f"opd.off_policy.field={field}: sample {sample.get('index', '?')} holds no list of responses there; make "
            "them with `python -m opd_verl.data rollouts`, or name another column"
        )
    return responses


def choose(sample: Mapping[str, object], field: str, seed: int, rollout: str) -> DataResponse:
    """One response of the sample, picked by the rollout's name."""
    responses = candidates(sample, field)
    return responses[zlib.crc32(f"response/{seed}/{rollout}".encode()) % len(responses)]


def token_ids(response: DataResponse, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """At most `limit` token ids; a text is encoded and closed by the end-of-sequence token.

    Raises:
        ValueError: an id that the tokenizer does not have.
    """
    if isinstance(response, str):
        ids = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
    else:
        ids = [int(token) for token in np.asarray(response)]
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise ValueError(f"a response of the data set has token id {max(ids)}; the tokenizer has {len(tokenizer)} ids")
    return ids[:limit]


def check_responses(batch: TensorDict, field: str) -> None:
    """Checks that every prompt has responses. An error here ends the run; verl only logs an agent loop's error.

    Raises ValueError: `candidates`.
    """
    columns = {name: column.tolist() for name, column in batch.items() if name in (field, "index")}
    for row in range(len(batch)):
        candidates({name: column[row] for name, column in columns.items()}, field)
