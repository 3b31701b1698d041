"""The LM head as a function of the last hidden states: weight, bias, scale, soft cap, temperature.

Shapes: N rows (positions that predict a response token), H hidden size, V = vocab_limit, K ids. Nats, float32.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

REFUSED_KEYS = ("lm_head_multiplier", "output_logit_soft_cap", "logits_soft_cap", "dim_model_base")
"""Config keys of published models that change the logits after the head and are not computed here."""
LOGIT_KEYS = (*REFUSED_KEYS, "logit_scale", "logits_scaling", "final_logit_softcapping")
"""All config keys that change the logits after the head."""


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
        """The first `vocab_limit` rows of `model`'s head.

        Raises:
            ValueError: no head, a limit beyond its rows, or a model that changes logits in a way unknown here.
        """
        layer = model.get_output_embeddings()
        if layer is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings; the teacher must be a causal LM")
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        if not 0 < vocab_limit <= len(weight):
            raise ValueError(f"vocab_limit={vocab_limit} must lie in 1..{len(weight)}, the rows of the LM head")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive")
        bias = None if bias is None else bias[:vocab_limit]
        config = model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(weight[:vocab_limit], bias, _logit_scale(config), softcap, temperature)

    def to(self, device: torch.device | str | int) -> "LMHead":
        """A copy with its tensors on `device`."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits float32 [N, V], a new tensor that the caller may overwrite."""
        return self.finish(F.linear(hidden_NH, self.weight, self.bias))

    def logits_at(self, hidden_NH: Tensor, ids_NK: Tensor) -> Tensor:
        """Logits float32 [N, K] at chosen ids: K dot products per row instead of V."""
        # `bmm` in the head's dtype rounds each product as `logits` does: both give the same log-probs.
        raw_NK = torch.bmm(self.weight[ids_NK], hidden_NH[:, :, None])[:, :, 0]
        return self.finish(raw_NK if self.bias is None else raw_NK + self.bias[ids_NK])

    def finish(self, raw: Tensor) -> Tensor:
        """Applies scale, cap and temperature to `raw` = weight h + bias, in float32; a float32 `raw` is overwritten."""
        logits = raw.float()
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _logit_scale(config: "PreTrainedConfig") -> float:
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
