"""The LM head, in chunks of rows: next-token statistics from last hidden states without a [T, V] tensor.

Shapes: N rows (positions that predict a response token), H hidden size, V = vocab_limit, K ids. Nats, float32.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFUSED_KEYS = ("lm_head_multiplier", "output_logit_soft_cap", "logits_soft_cap", "dim_model_base")
"""Config keys of published models that change the logits after the head, and that nothing here computes."""


@dataclass(frozen=True, eq=False)
class LMHead:
    """logits(h) = cap(scale * (weight h + bias)) / temperature over the ids 0..V-1; cap(x) = c tanh(x / c) or x.

    weight [V, H] and bias [V] or None are views of the model's own parameters.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    temperature: float

    @classmethod
    def of(cls, model: "PreTrainedModel", vocab_limit: int, temperature: float) -> Self:
        """The first `vocab_limit` rows of `model`'s head. Raises ValueError for a head it cannot reproduce."""
        layer: Any = model.get_output_embeddings()
        if layer is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings; the teacher must be a causal LM")
        if not 0 < vocab_limit <= len(layer.weight):
            raise ValueError(f"vocab_limit={vocab_limit} must lie in 1..{len(layer.weight)}, the rows of the LM head")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive")
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else bias[:vocab_limit]
        config = model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight[:vocab_limit], bias, _logit_scale(config), softcap, temperature)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """f32 [N, V]; a fresh tensor that the caller may overwrite."""
        return self._finish(F.linear(hidden_NH, self.weight, self.bias))

    def logits_at(self, hidden_NH: Tensor, ids_NK: Tensor) -> Tensor:
        """f32 [N, K]: K dot products per row, rounded to the model dtype as the whole head's are."""
        raw_NK = torch.bmm(self.weight[ids_NK], hidden_NH[:, :, None])[:, :, 0]
        return self._finish(raw_NK if self.bias is None else raw_NK + self.bias[ids_NK])

    def _finish(self, raw: Tensor) -> Tensor:
        logits = raw.float()
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _logit_scale(config: Any) -> float:
    """The factor between head and logits: `logit_scale` (Cohere), 1 / `logits_scaling` (Granite), else 1.0."""
    for key in REFUSED_KEYS:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise ValueError(f"config.{key}={getattr(config, key)} changes the teacher's logits and is not supported")
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if isinstance(factor, str):
        raise ValueError(f"config.logit_scale={factor!r} is not a number and is not supported")
    if divisor not in (None, 1, 1.0) and not config.model_type.startswith("granite"):
        raise ValueError(f"config.logits_scaling={divisor} of model type {config.model_type!r} is not supported")
    return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Of N rows: logsumexp, log_q, entropy f32 [N]; topk_ids i32 and topk_log_q f32 [N, K], descending (K may be 0)."""

    logsumexp: Tensor
    log_q: Tensor
    entropy: Tensor
    topk_ids: Tensor
    topk_log_q: Tensor


def _chunk_statistics(head: LMHead, hidden_NH: Tensor, tokens_N: Tensor, topk: int) -> tuple[Tensor, ...]:
    """With z = logits - max and s = sum exp z: log q = z_y - log s and H = log s - sum p z.

    The plain forms (logsumexp - sum p logit), shifted: nothing cancels when the logits are large.
    """
    logits_NV = head.logits(hidden_NH)
    top_N = logits_NV.amax(-1)
    z_NV = logits_NV.sub_(top_N[:, None])
    weights_NV = z_NV.exp()
    total_N = weights_NV.sum(-1)
    log_total_N = total_N.log()
    log_q_N = z_NV.gather(-1, tokens_N[:, None])[:, 0] - log_total_N
    entropy_N = log_total_N - weights_NV.mul_(z_NV).sum(-1) / total_N
    topk_z_NK, topk_ids_NK = z_NV.topk(topk, dim=-1)
    return top_N + log_total_N, log_q_N, entropy_N, topk_ids_NK.int(), topk_z_NK - log_total_N[:, None]


def row_statistics(head: LMHead, hidden_NH: Tensor, tokens_N: Tensor, topk: int, chunk_rows: int) -> RowStatistics:
    """Statistics of the next-token distributions of all rows; at most [chunk_rows, V] logits alive at a time."""
    chunks = zip(hidden_NH.split(chunk_rows), tokens_N.split(chunk_rows), strict=True)
    parts = [_chunk_statistics(head, hidden, tokens, topk) for hidden, tokens in chunks]
    return RowStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))
