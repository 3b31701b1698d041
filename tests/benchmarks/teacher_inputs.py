"""What the teacher's benchmarks score: random Qwen3 teachers saved on the spot, rollouts of random tokens.

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
        """From "hidden,layers,vocabulary". Raises ValueError for anything else."""
        hidden, layers, vocabulary = (int(part) for part in text.split(","))
        return cls(hidden, layers, vocabulary)


def make_teacher(size: TeacherSize, dtype: torch.dtype, max_positions: int) -> Qwen3ForCausalLM:
    """A random teacher with heads of HEAD_DIM, two to a key-value head, an own LM head, and logits of LOGIT_STD."""
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
    """`make_teacher` on disk, without a tokenizer."""
    make_teacher(size, dtype, max_positions).save_pretrained(folder)
    return str(folder)


def rollouts(
    vocabulary: int, prompts: list[int], responses: list[int], siblings: int = 1, seed: int = 0
) -> list[ScoreRequest]:
    """Requests with these prompt lengths, `siblings` to each prompt, and in turn these response lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt, length in enumerate(prompts):
        prompt_ids = rng.integers(0, vocabulary, length)
        for sibling in range(siblings):
            response = responses[len(found) % len(responses)]
            found.append(ScoreRequest(f"{prompt}_{sibling}_0", prompt_ids, rng.integers(0, vocabulary, response)))
    return found


def response_tokens(requests: list[ScoreRequest]) -> int:
    """Sum of R."""
    return sum(len(request.response_ids) for request in requests)
