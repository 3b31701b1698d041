"""Makes the inputs of the teacher's benchmarks: random Qwen3 teachers, and rollouts of random tokens.

Shapes: H hidden size, V ids, P prompt tokens, R response tokens.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from step_inputs import LOGIT_STD
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd_verl.teacher.score import ScoreRequest

HEAD_DIM = 64


class TeacherSize(NamedTuple):
    """Sizes of one teacher."""

    hidden: int
    layers: int
    vocabulary: int

    def __str__(self) -> str:
        return f"H = {self.hidden}, {self.layers} layers, V = {self.vocabulary:,}"

    @classmethod
    def parse(cls, text: str) -> "TeacherSize":
        """Parses "hidden,layers,vocabulary". Raises ValueError for another form."""
        hidden, layers, vocabulary = (int(part) for part in text.split(","))
        return cls(hidden, layers, vocabulary)


def make_teacher(size: TeacherSize, dtype: torch.dtype, max_positions: int) -> Qwen3ForCausalLM:
    """Makes a random teacher: heads of HEAD_DIM, two per key-value head, untied LM head, logits of LOGIT_STD."""
    torch.manual_seed(0)
    heads = max(2, size.hidden // HEAD_DIM)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = Qwen3ForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=LOGIT_STD * size.hidden**-0.5)
    return model.to(dtype).eval()  # pyright: ignore[reportArgumentType]  # transformers wraps `to` without its types


def save_teacher(size: TeacherSize, dtype: torch.dtype, max_positions: int, folder: Path) -> str:
    """Saves a random teacher without tokenizer. Returns its folder."""
    make_teacher(size, dtype, max_positions).save_pretrained(folder)
    return str(folder)


def rollouts(
    vocabulary: int, prompts: list[int], responses: list[int], siblings: int = 1, seed: int = 0
) -> list[ScoreRequest]:
    """Makes requests with these prompt lengths, `siblings` per prompt; the response lengths are taken in turn."""
    rng = np.random.default_rng(seed)
    requests: list[ScoreRequest] = []
    for prompt, length in enumerate(prompts):
        prompt_ids = rng.integers(0, vocabulary, length)
        for sibling in range(siblings):
            response = responses[len(requests) % len(responses)]
            requests.append(ScoreRequest(f"{prompt}_{sibling}_0", prompt_ids, rng.integers(0, vocabulary, response)))
    return requests


def response_tokens(requests: list[ScoreRequest]) -> int:
    """Returns the sum of all response lengths."""
    return sum(len(request.response_ids) for request in requests)
