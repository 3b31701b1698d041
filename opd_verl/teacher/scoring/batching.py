"""The tokens that the teacher's body reads of each request, and the requests that it reads together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest

SHARING_PAYS = 0.17
"""Share of a batch's tokens that reading each prompt once must save, to pay for two passes and an explicit mask.
Measured on a CPU: break-even at 0.12 for responses of one length, 0.21 for mixed ones (recipes/LOG.md)."""


def fed_tokens(request: ScoreRequest) -> int:
    """Tokens the body reads: P + R - 1, because no score is about the token after the last one (0 if R = 0)."""
    length = len(request.response_ids)
    return len(request.prompt_ids) + length - 1 if length else 0


def fed_ids(request: ScoreRequest) -> Tensor:
    """The tokens the body reads, int64 [fed_tokens]."""
    ids = np.concatenate([request.prompt_ids, request.response_ids])[: fed_tokens(request)]
    return torch.from_numpy(ids.astype(np.int64))


def distinct_prompts(requests: Sequence[ScoreRequest]) -> tuple[list[np.ndarray], list[int]]:
    """The different prompts in order of appearance, and for each request the index of its prompt."""
    known: dict[bytes, int] = {}
    of_row = [known.setdefault(request.prompt_ids.tobytes(), len(known)) for request in requests]
    return [np.frombuffer(ids, dtype=np.int32) for ids in known], of_row


def shared_saving(requests: Sequence[ScoreRequest]) -> float:
    """Share of the requests' tokens that belong to prompts already read for another request."""
    prompts, _ = distinct_prompts(requests)
    repeated = sum(len(request.prompt_ids) for request in requests) - sum(len(ids) for ids in prompts)
    return repeated / max(sum(fed_tokens(request) for request in requests), 1)


def batch_rows(lengths: Sequence[int], max_tokens: int, padded: bool = True) -> list[list[int]]:
    """Indices of rows in batches of at most max_tokens, longest rows first; a row above max_tokens goes alone.

    A batch of padded rows costs rows x longest row, a packed batch the sum of its rows.
    """
    return fill_batches(sorted(range(len(lengths)), key=lambda index: -lengths[index]), lengths, max_tokens, padded)


def fill_batches(order: Iterable[int], lengths: Sequence[int], max_tokens: int, padded: bool) -> list[list[int]]:
    """The indices in this order; a new batch begins where the next row would exceed max_tokens."""
    batches: list[list[int]] = []
    longest = total = 0
    for index in order:
        longest, total = max(longest, lengths[index]), total + lengths[index]
        if batches and ((len(batches[-1]) + 1) * longest if padded else total) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = total = lengths[index]
    return batches


def batch_requests(requests: Sequence[ScoreRequest], max_tokens: int, padded: bool, share: bool) -> list[list[int]]:
    """Batches of requests. Requests with one prompt go together where `share` is allowed and would save enough."""
    lengths = [fed_tokens(request) for request in requests]
    if not share or shared_saving(requests) < SHARING_PAYS:
        return batch_rows(lengths, max_tokens, padded)
    siblings: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(distinct_prompts(requests)[1]):
        siblings[prompt].append(index)
    groups = sorted(siblings.values(), key=lambda group: -max(lengths[index] for index in group))
    order = [index for group in groups for index in sorted(group, key=lambda index: -lengths[index])]
    return fill_batches(order, lengths, max_tokens, padded=True)
