"""Bytes that a decoder layer keeps for its backward pass, counted on the model's own code in tensors without memory."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface

from opd_verl.plan.shape import skeleton

PROBE_TOKENS = 128
KERNEL = "opd_verl_plan"
"""transformers' name of an attention that keeps what flash attention does, and computes nothing."""


class Kept(torch.autograd.Function):
    """Queries, keys, values [B, heads, T, D], the output [B, T, heads, D] and its logsumexp."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keeps what a backward pass would read."""
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' signature of an attention."""
    return Kept.apply(query, key, value), None  # pyright: ignore[reportReturnType]


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


def saved_bytes(config: Any, dtype: torch.dtype) -> float:
    """Of one layer and one token, parameters left out: two layers' less one layer's.

    The count is linear in tokens: flash attention does not keep the [tokens, tokens] matrix.
    """
    return (body_bytes(cut(config, 2), dtype) - body_bytes(cut(config, 1), dtype)) / PROBE_TOKENS


def body_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of a whole body and PROBE_TOKENS tokens."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive, so that no later storage takes its place
        return tensor

    with FakeTensorMode():
        body: Any = skeleton(config, dtype, KERNEL).get_decoder()
        hidden = torch.randn(1, PROBE_TOKENS, config.get_text_config().hidden_size, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            body(inputs_embeds=hidden, use_cache=False)
        own = {weight.untyped_storage()._cdata for weight in body.parameters()}
        sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for storage, size in sizes.items() if storage not in own)


def cut(config: Any, layers: int) -> Any:
    """The same model with fewer layers and a vocabulary of 8."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, 8
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    return short
