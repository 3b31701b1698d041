"""The decoder under the LM head reads a batch of rollouts: packed, padded, or each distinct prompt only once.

All three give the last hidden states of positions P-1 .. P+R-2 of every request, concatenated: [sum R, H]. Position t
predicts token t+1, so these predict the R response tokens; the last response token itself is never read.

Shape suffixes: B rows, T padded positions, G distinct prompts, P prompt positions, R response positions, H hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import distinct_prompts, fed_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FULL_ATTENTION = {"full_attention"}


def is_packing(config: "PreTrainedConfig") -> bool:
    """Whether the model's attention keeps the rollouts of one row apart without a mask of tokens x tokens."""
    # transformers' flash attention cuts a row where position_ids start again at 0; sdpa and eager do not.
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def can_share(config: "PreTrainedConfig") -> bool:
    """Whether the prompt's keys and values are enough to read a response: full attention in every layer."""
    # A sliding window's cache drops old keys, and a linear layer's state cannot be copied as keys and values.
    kinds = getattr(config, "layer_types", None)
    return set(kinds) <= FULL_ATTENTION if kinds else getattr(config, "sliding_window", None) is None


def read_padded(body: "PreTrainedModel", requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """One row per request, padded on the right: causal attention never sees padding from a token that is read."""
    fed = [fed_ids(request) for request in requests]
    ids_BT = pad_sequence(fed, batch_first=True).to(device)
    positions_BT = torch.arange(ids_BT.shape[1], device=device).expand(ids_BT.shape)
    lengths_B = torch.tensor([len(row) for row in fed], device=device)
    mask_BT = (positions_BT < lengths_B[:, None]).long()
    hidden_BTH = body(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False)[0]
    rows = zip(hidden_BTH, requests, strict=True)
    return torch.cat([row[len(r.prompt_ids) - 1 :][: len(r.response_ids)] for row, r in rows])


def read_packed(body: "PreTrainedModel", requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """All requests behind one another in one row without padding; positions that start again at 0 keep them apart."""
    fed = [fed_ids(request) for request in requests]
    ids_1N = torch.cat(fed)[None].to(device)
    positions_1N = torch.cat([torch.arange(len(row)) for row in fed])[None].to(device)
    hidden_NH = body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
    rows = zip(hidden_NH.split([len(row) for row in fed]), requests, strict=True)
    return torch.cat([row[len(r.prompt_ids) - 1 :] for row, r in rows])


def read_shared(body: "PreTrainedModel", requests: Sequence[ScoreRequest], device: torch.device) -> Tensor:
    """Reads each distinct prompt once, then all responses on the prompt's keys and values.

    Prompts are padded on the left, so that each prompt ends next to its responses in the cache.
    """
    prompts, prompt_of_row = distinct_prompts(requests)
    # pad_sequence pads on the right: reversed rows, padded and flipped, are padded on the left.
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
    first_BH = last_GH[of_row_B]  # the prompt's last position predicts the first response token
    longest = max(len(request.response_ids) for request in requests) - 1
    if longest == 0:
        return first_BH
    cache.batch_select_indices(of_row_B)  # one copy of a prompt's keys and values for each of its responses
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
    parts = zip(first_BH, hidden_BRH, responses, strict=True)
    return torch.cat([torch.cat([first_H[None], rows[: len(ids)]]) for first_H, rows, ids in parts])
