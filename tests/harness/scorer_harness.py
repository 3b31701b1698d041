"""Requests to a scorer, and the float64 forward pass that its scores are compared with."""

import copy
from typing import Any

import numpy as np
import torch

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.state import RolloutState

VOCAB, LIMIT, MAX_POSITIONS = 96, 90, 128

CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def request(key: str, prompt: int, response: int, limit: int = LIMIT, seed: int = 0) -> ScoreRequest:
    rng = np.random.default_rng([seed, prompt, response])
    return ScoreRequest(key, rng.integers(0, limit, prompt), rng.integers(0, limit, response))


def reference(model: Any, asked: ScoreRequest, limit: int, temperature: float = 1.0) -> torch.Tensor:
    """float64 log q_t(v) [R, limit]: one unpadded row through the whole model, log-softmax over the allowed ids."""
    ids = torch.tensor([*asked.prompt_ids.tolist(), *asked.response_ids.tolist()])
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=ids[None]).logits[0].double()
    rows = []
    for t in range(len(asked.response_ids)):
        z = logits[len(asked.prompt_ids) + t - 1, :limit] / temperature
        rows.append(z - torch.logsumexp(z, 0))
    return torch.stack(rows) if rows else torch.zeros(0, limit, dtype=torch.float64)


def assert_matches(state: RolloutState, asked: ScoreRequest, log_probs: torch.Tensor) -> None:
    for t, token in enumerate(asked.response_ids.tolist()):
        torch.testing.assert_close(state.log_q[t].double(), log_probs[t, token], **CLOSE)
        torch.testing.assert_close(state.entropy[t].double(), -(log_probs[t].exp() * log_probs[t]).sum(), **CLOSE)
    assert state.log_q.shape == state.entropy.shape == state.logsumexp.shape == asked.response_ids.shape
    assert state.log_q.dtype == state.entropy.dtype == state.logsumexp.dtype == torch.float32


MIXED = [
    request("long", 20, 50),
    request("one_token", 7, 1),
    request("one_token_prompt", 1, 9),
    request("empty", 5, 0),
    request("longest", 29, MAX_POSITIONS + 1 - 29),
    request("short", 3, 2),
]

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def build(config: Any, model_class: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config).eval()
