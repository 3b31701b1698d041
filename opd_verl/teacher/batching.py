"""What the teacher's body reads of each request, and which requests it reads together."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest


def fed_tokens(request: ScoreRequest) -> int:
    """Tokens the body reads: the last response token predicts nothing that is asked, so P + R - 1 (0 if R = 0)."""
    length = len(request.response_ids)
    return len(request.prompt_ids) + length - 1 if length else 0


def fed_ids(request: ScoreRequest) -> Tensor:
    """Those tokens, int64 [fed_tokens]."""
    ids = np.concatenate([request.prompt_ids, request.response_ids])[: fed_tokens(request)]
    return torch.from_numpy(ids.astype(np.int64))


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that rows x longest row <= max_tokens, longest first; a longer row goes alone."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
