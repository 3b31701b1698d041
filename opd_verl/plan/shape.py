"""The shape of a model from its config: exact parameter counts, without reading a weight."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ModelShape:
    """Counts of parameters, and widths. `head` and `embedding` are the same parameters where they are tied."""

    total: int
    embedding: int
    head: int
    tied: bool
    layer: int
    """Of the largest decoder layer."""
    layers: int
    hidden: int
    vocabulary: int
    """Rows of the LM head, padding included."""
    kv_width: int
    """Numbers that the KV cache holds for a token, keys and values, over all layers."""
    attention_width: int
    """Query width summed over layers: what a token's attention to one other costs."""
    intermediate: int
    active: int
    """Parameters that a token is multiplied with; fewer than `total` in a mixture of experts."""

    @property
    def root(self) -> int:
        """What lies in no layer: embeddings, final norm, and the LM head where it is one of its own."""
        return self.total - self.layers * self.layer

    @property
    def matrix(self) -> int:
        """Parameters in a forward pass's matrix products: an embedding is looked up."""
        return self.active - (0 if self.tied else self.embedding)


def shape_of(config: Any) -> ModelShape:
    """From a transformers config. Takes a second; allocates nothing."""
    with torch.device("meta"):
        model = skeleton(config)
    text = config.get_text_config()
    layers = decoder_layers(model)
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    heads, depth = text.num_attention_heads, len(layers)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    total = sum(weight.numel() for weight in model.parameters())
    return ModelShape(
        total=total,
        embedding=embedding.numel(),
        head=head.numel(),
        tied=head is embedding,
        layer=max(sum(weight.numel() for weight in layer.parameters()) for layer in layers),
        layers=depth,
        hidden=text.hidden_size,
        vocabulary=head.shape[0],
        kv_width=2 * kv_heads * head_dim * depth,
        attention_width=heads * head_dim * depth,
        intermediate=text.intermediate_size,
        active=total - idle_experts(text, layers),
    )


def skeleton(config: Any, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The model in whatever memory torch hands out now: on the meta device or in fake tensors, none."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The modules that FSDP wraps and gathers one after the other.

    Raises:
        ValueError: the model names none.
    """
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ValueError(f"{type(model).__name__} names no layers (_no_split_modules), by which FSDP shards it")
    return layers


def idle_experts(text: Any, layers: list[nn.Module]) -> int:
    """Parameters of experts that a token does not visit, over all layers."""
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not experts or not chosen:
        return 0
    named = [item for layer in layers for item in layer.named_parameters() if ".experts." in f".{item[0]}"]
    return sum(weight.numel() for _, weight in named) * (experts - chosen) // experts
