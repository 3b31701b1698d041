"""Bytes that a decoder layer keeps for its backward pass, counted on the model's own code in tensors without memory."""

import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from opd_verl.plan.shape import skeleton

PROBE_TOKENS = 128
KERNEL = "opd_verl_plan"
"""Name under which transformers finds an attention that saves the tensors flash attention saves, and computes nothing.
flash attention itself runs on no CPU, and sdpa would save the [tokens, tokens] matrix."""


class Kept(torch.autograd.Function):
    """Saves queries, keys, values [B, heads, T, D], the output [B, T, heads, D] and its logsumexp."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Saves the tensors that flash attention's backward pass reads; there is no backward pass here."""
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
) -> tuple[Tensor, None]:
    """`Kept` with the signature of an attention in transformers."""
    return Kept.apply(query, key, value), None  # pyright: ignore[reportReturnType]


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


def saved_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> float:
    """Bytes saved per layer and token, without parameters: the bytes of two layers less those of one layer.

    The count is linear in tokens: flash attention does not keep the [tokens, tokens] matrix.
    """
    return (body_bytes(cut(config, 2), dtype) - body_bytes(cut(config, 1), dtype)) / PROBE_TOKENS


def body_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes that a whole body saves for PROBE_TOKENS tokens."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # stays alive, so that no later storage gets its address and is counted as the same
        return tensor

    with FakeTensorMode():
        body = skeleton(config, dtype, KERNEL).get_decoder()
        hidden = torch.randn(1, PROBE_TOKENS, config.get_text_config().hidden_size, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            body(inputs_embeds=hidden, use_cache=False)
        # Storages and not tensors are counted: a layer saves several views of one activation.
        own = {weight.untyped_storage()._cdata for weight in body.parameters()}
        sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for storage, size in sizes.items() if storage not in own)


def cut(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of the config with `layers` layers and a vocabulary of 8."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, 8
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)  # the padding id is a row of the embedding, which has 8 rows now
    return short
