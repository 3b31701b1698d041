"""Weights that rest in host memory and lie on the device only while they are used."""

from typing import Any

import torch
from torch import Tensor


class HostWeights:
    """A model whose parameters and buffers are in host memory (pinned for CUDA), and copies of them on the device.

    Nothing is copied back: what the device holds is dropped. Whoever changes weights does so while they are at rest.
    """

    def __init__(self, model: Any, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.present = False
        self.tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        for tensor in self.tensors:
            tensor.data = tensor.data.cpu()
            if self.device.type == "cuda":
                tensor.data = tensor.data.pin_memory()
        self.resting = [tensor.data for tensor in self.tensors]

    def bring(self) -> None:
        """Copies the weights to the device, if they are not there."""
        if not self.present:
            for tensor, resting in zip(self.tensors, self.resting, strict=True):
                tensor.data = resting.to(self.device, non_blocking=True, copy=True)
            self.present = True

    def drop(self) -> None:
        """Frees the device's copies, if there are any."""
        if self.present:
            for tensor, resting in zip(self.tensors, self.resting, strict=True):
                tensor.data = resting
            self.present = False
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
