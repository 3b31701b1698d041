"""The decoder under the LM head reads a batch of rollouts: packed, padded, or each distinct prompt only once.

All three give the last hidden states of the rows P-1 .. P+R-2 of every request, concatenated: [sum R, H]. The last
response token predicts nothing that is asked, so it is never read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import distinct_prompts, fed_ids

FULL_ATTENTION = {"full_attention"}


def is_packing(config: Any) -> bool:
    """Whether the model's attention keeps the rollouts of one row apart without a mask of tokens x tokens."""
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def can_share(config: Any) -> bool:
    """Whether keys and values of a prompt are all that its responses need: full attention in every layer."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) <= FULL_ATTENTION if kinds else getattr(config, "sliding_window", None) is None


def read_padded(body: Any, requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """One row per request, padded on the right; the causal mask alone hides the padding from what is read."""
    fed = [fed_ids(request) for request in requests]
    ids_BT = pad_sequence(fed, batch_first=True).to(device)
    positions_BT = torch.arange(ids_BT.shape[1], device=device).expand(ids_BT.shape)
    lengths_B = torch.tensor([len(row) for row in fed], device=device)
    mask_BT = (positions_BT < lengths_B[:, None]).long()
    hidden_BTH = body(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False)[0]
    rows = zip(hidden_BTH, requests, strict=True)
    return torch.cat([row[len(r.prompt_ids) - 1 :][: len(r.response_ids)] for row, r in rows])


def read_packed(body: Any, requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """All requests behind one another in one row without padding; positions that start again at 0 keep them apart."""
    fed = [fed_ids(request) for request in requests]
    ids_1N = torch.cat(fed)[None].to(device)
    positions_1N = torch.cat([torch.arange(len(row)) for row in fed])[None].to(device)
    hidden_NH = body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
    rows = zip(hidden_NH.split([len(row) for row in fed]), requests, strict=True)
    return torch.cat([row[len(r.prompt_ids) - 1 :] for row, r in rows])


def read_shared(body: Any, requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """Each distinct prompt once, then all responses on its keys and values.

    Prompts are padded on the left, so that prompt and response stay neighbours.
    """
    prompts, prompt_of_row = distinct_prompts(requests)
    reversed_ids = [torch.tensor(ids[::-1].copy(), dtype=torch.long) for ids in prompts]
    ids_GP = pad_sequence(reversed_ids, batch_first=True).flip(1).to(device)
    lengths_G = torch.tensor([len(ids) for ids in prompts], device=device)
    width = ids_GP.shape[1]
    offsets_GP = torch.arange(width, device=device) - (width - lengths_G[:, None])
    mask_GP = (offsets_GP >= 0).long()
    cache = DynamicCache(config=body.config)
    last_GH = body(
        input_ids=ids_GP,
        attention_mask=mask_GP,
        position_ids=offsets_GP.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )[0][:, -1]
    of_row_B = torch.tensor(prompt_of_row, device=device)
    first = last_GH[of_row_B]
    longest = max(len(request.response_ids) for request in requests) - 1
    if longest == 0:
        return first
    cache.batch_select_indices(of_row_B)
    responses = [torch.tensor(request.response_ids[:-1], dtype=torch.long) for request in requests]
    ids_BR = pad_sequence(responses, batch_first=True).to(device)
    steps_R = torch.arange(longest, device=device)
    read_B = torch.tensor([len(ids) for ids in responses], device=device)
    hidden_BRH = body(
        input_ids=ids_BR,
        attention_mask=torch.cat([mask_GP[of_row_B], (steps_R < read_B[:, None]).long()], dim=1),
        position_ids=lengths_G[of_row_B, None] + steps_R,
        past_key_values=cache,
        use_cache=True,
    )[0]
    parts = zip(first, hidden_BRH, responses, strict=True)
    return torch.cat([torch.cat([one[None], rows[: len(ids)]]) for one, rows, ids in parts])
