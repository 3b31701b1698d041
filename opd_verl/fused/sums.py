"""Gradients of hidden states, weight and bias, summed over chunks of rows."""

import torch
from torch import Tensor


class GradientSums:
    """Takes d loss / d logits chunk by chunk; gives the gradients of hidden states, weight and bias."""

    def __init__(
        self,
        needed: tuple[bool, ...],
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        limit: int,
    ) -> None:
        self.hidden_NH, self.weight_VH = hidden_NH, weight_VH[:limit]
        self.dhidden_NH = torch.empty_like(hidden_NH) if needed[0] else None
        self.dweight_VH = torch.zeros_like(weight_VH) if needed[1] else None
        self.dbias_V = torch.zeros_like(bias_V) if bias_V is not None and needed[2] else None

    def add(self, dlogits_CV: Tensor, chunk: slice) -> None:
        """Adds one chunk's dz: dh = dz W, dW += dz^T h, db += sum dz."""
        limit = dlogits_CV.shape[1]
        if self.dhidden_NH is not None:
            torch.mm(dlogits_CV, self.weight_VH, out=self.dhidden_NH[chunk])
        if self.dweight_VH is not None:
            # Padding rows from `limit` on keep the gradient 0. The sum has the parameter's dtype: a float32 sum would
            # double the largest tensor of this pass.
            total_VH = self.dweight_VH[:limit]
            torch.addmm(total_VH, dlogits_CV.t(), self.hidden_NH[chunk], out=total_VH)
        if self.dbias_V is not None:
            self.dbias_V[:limit] += dlogits_CV.sum(0, dtype=torch.float32).to(self.dbias_V.dtype)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias; None where none is needed."""
        return self.dhidden_NH, self.dweight_VH, self.dbias_V
