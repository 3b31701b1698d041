"""Tiny random models for tests: plain functions, no fixtures, nothing downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def tiny_qwen3(
    vocab_size: int = 96,
    seed: int = 0,
    hidden_size: int = 32,
    layers: int = 2,
    max_positions: int = 128,
    initializer_range: float = 0.3,
    tie_word_embeddings: bool = False,
) -> Qwen3ForCausalLM:
    """A random float32 Qwen3 in eval mode; the large initializer_range makes its distributions far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=max_positions,
        initializer_range=initializer_range,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=0,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config).eval()


def tiny_tokenizer(size: int = 96) -> PreTrainedTokenizerFast:
    """`size` words "w0 w1 ..." whose ids are their numbers; w1 is the end of a sequence."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w1", unk_token="w0")


def save_tiny_qwen3(path: Path, vocab_size: int = 96, tokenizer_size: int | None = None, seed: int = 0) -> str:
    """A tiny model with its tokenizer on disk, as from the hub; the model may have more rows than the tokenizer ids."""
    tiny_qwen3(vocab_size, seed).save_pretrained(path)
    tiny_tokenizer(tokenizer_size or vocab_size).save_pretrained(path)
    return str(path)
