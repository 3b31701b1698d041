"""The quickstart's models: Qwen3 at a size that two CPU cores train in a minute."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd_verl.quickstart.tokenizer import end_id, pad_id

LONGEST_SEQUENCE = 256
VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of 64; with this multiple trainer and vLLM hold matrices of equal shape."""


@dataclass(frozen=True)
class ModelSize:
    """Width and depth of a model."""

    hidden: int
    """Residual width."""
    layers: int
    """Number of transformer blocks."""
    head_dim: int = 32
    """Width of an attention head; 32 is the smallest that vLLM's CPU attention accepts."""


TEACHER = ModelSize(hidden=128, layers=3)
STUDENT = ModelSize(hidden=96, layers=3)


def padded_vocabulary(tokens: int) -> int:
    """Rounds up to a multiple of `VOCABULARY_MULTIPLE`."""
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def qwen3_config(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Returns a Qwen3 configuration of this size for this tokenizer: tied embeddings, float32, full attention."""
    heads = size.hidden // size.head_dim
    return Qwen3Config(
        vocab_size=padded_vocabulary(len(tokenizer)),
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=size.head_dim,
        max_position_embeddings=LONGEST_SEQUENCE,
        tie_word_embeddings=True,
        eos_token_id=end_id(tokenizer),
        pad_token_id=pad_id(tokenizer),
        bos_token_id=None,
        dtype=torch.float32,
    )


def build_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Returns a new float32 model; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(qwen3_config(size, tokenizer))
    return model


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes weights, configuration and tokenizer: the folder that `from_pretrained`, verl and vLLM read."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load_model(directory: Path) -> Qwen3ForCausalLM:
    """Loads the model saved in `directory`, in float32."""
    return Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
