"""The shape of a model from its config: exact parameter counts, without reading a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Numbers of parameters, and widths. `head` and `embedding` are the same parameters where they are tied."""

    total: int
    embedding: int
    head: int
    tied: bool
    layer: int
    """Parameters of the largest decoder layer."""
    layers: int
    hidden: int
    vocabulary: int
    """Rows of the LM head, padding included."""
    kv_width: int
    """Numbers that the KV cache holds for a token, keys and values, over all layers."""
    attention_width: int
    """Query width, summed over layers: the cost of a token's attention to one other token is proportional to it."""
    intermediate: int
    active: int
    """Parameters that a token is multiplied with; fewer than `total` in a mixture of experts."""

    @property
    def root(self) -> int:
        """Parameters outside the layers: embeddings, final norm, and the LM head where it is not tied."""
        return self.total - self.layers * self.layer

    @property
    def matrix(self) -> int:
        """Parameters in a forward pass's matrix products."""
        # An embedding is looked up, not multiplied; a tied embedding is also the LM head, and counts once.
        return self.active - (0 if self.tied else self.embedding)


def shape_of(config: "PreTrainedConfig") -> ModelShape:
    """The shape of the model that a transformers config describes. Takes a second; allocates nothing."""
    with torch.device("meta"):
        model = skeleton(config)
    text = config.get_text_config()
    layers = decoder_layers(model)
    head = head_of(model).get_parameter("weight")
    embedding = model.get_input_embeddings().get_parameter("weight")
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


def skeleton(
    config: "PreTrainedConfig", dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> "PreTrainedModel":
    """The model of a config. It takes no memory on the meta device or in fake tensors, which the caller switches on."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def head_of(model: "PreTrainedModel") -> nn.Module:
    """The LM head."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal LM has a head"
    return head


def decoder_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """The modules that FSDP wraps and gathers one after the other.

    Raises:
        ValueError: the model does not say which modules are its layers.
    """
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.get_decoder().modules() if type(module).__name__ in kinds]
    if not layers:
        raise ValueError(f"{type(model).__name__} names no layers (_no_split_modules), by which FSDP shards it")
    return layers


def idle_experts(text: "PreTrainedConfig", layers: Sequence[nn.Module]) -> int:
    """Parameters of the experts that a token does not visit, over all layers."""
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not experts or not chosen:
        return 0
    named = [item for layer in layers for item in layer.named_parameters() if ".experts." in f".{item[0]}"]
    return sum(weight.numel() for _, weight in named) * (experts - chosen) // experts
