"""Responses that are not the student's own (METHODS 1.9): GKD's lambda, and distillation on a teacher's texts alone.

With probability `opd.off_policy.share` a rollout takes its response from the data set, from the column
`opd.off_policy.field`: a list of responses, each a list of token ids or a text. `python -m opd_verl.data rollouts`
writes such a column.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OFF_POLICY = "off_policy"
"""Field of a rollout in TransferQueue, [1]: 1 where the response is the data set's; of its tokens for the actor."""
ROLLOUT_COLUMNS = ("responses", "response_ids", "response_tokens", "finished", "scores", "answers", "model")
"""What a file of rollouts adds to the data set's columns; `responses` is also verl's name of what was sampled."""


def draw(seed: int, rollout: str) -> float:
    """A number in [0, 1) that belongs to this rollout, the same in every run, on every worker and after a resume."""
    return zlib.crc32(f"off_policy/{seed}/{rollout}".encode()) / 2**32


def candidates(sample: Mapping[str, Any], field: str) -> list[Any]:
    """The sample's own responses.

    Raises:
        ValueError: there is no such column, or it holds none.
    """
    found = sample.get(field)
    responses = [] if found is None or isinstance(found, str) else [one for one in found if len(one)]
    if not responses:
        raise ValueError(
            f"opd.off_policy.field={field}: sample {sample.get('index', '?')} holds no list of responses there; make "
            "them with `python -m opd_verl.data rollouts`, or name another column"
        )
    return responses


def choose(sample: Mapping[str, Any], field: str, seed: int, rollout: str) -> Any:
    """One of the sample's responses, picked by the rollout's name."""
    responses = candidates(sample, field)
    return responses[zlib.crc32(f"response/{seed}/{rollout}".encode()) % len(responses)]


def token_ids(response: str | Sequence[int], tokenizer: Any, limit: int) -> list[int]:
    """At most `limit` token ids; a text is encoded and closed by the end-of-sequence token.

    Raises:
        ValueError: an id that the tokenizer does not have.
    """
    if isinstance(response, str):
        ids = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
    else:
        ids = [int(one) for one in np.asarray(response)]
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise ValueError(f"a response of the data set has token id {max(ids)}; the tokenizer has {len(tokenizer)}")
    return ids[:limit]
