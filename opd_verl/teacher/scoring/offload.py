"""Weights that rest in host memory and lie on the device only while they are used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

import torch
from torch import Tensor, nn


class HostWeights:
    """A model whose parameters and buffers are in host memory (pinned for CUDA), and copies of them on the device.

    Nothing is copied back: the device's copies are dropped. New weights must be loaded while no copies exist.
    """

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.present = False
        self.tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        for tensor in self.tensors:
            tensor.data = tensor.data.cpu()
            if self.device.type == "cuda":
                # Only from pinned memory does `non_blocking` copy asynchronously.
                tensor.data = tensor.data.pin_memory()
        self.resting = [tensor.data for tensor in self.tensors]

    def bring(self) -> None:
        """Copies the weights to the device, if they are not there."""
        if not self.present:
            self.present = True
            try:
                # `.data` is swapped in place, so that parameter objects, ties and the reader's references stay valid.
                for tensor, resting in zip(self.tensors, self.resting, strict=True):
                    tensor.data = resting.to(self.device, non_blocking=True, copy=True)
            except torch.OutOfMemoryError as error:
                self.drop()
                raise RuntimeError(
                    f"the colocated teacher's weights do not fit beside what is on {self.device}: lower "
                    "actor_rollout_ref.rollout.gpu_memory_utilization, or offload the actor "
                    "(actor_rollout_ref.actor.fsdp_config.param_offload and optimizer_offload)"
                ) from error

    def drop(self) -> None:
        """Frees the device's copies, if there are any."""
        if self.present:
            for tensor, resting in zip(self.tensors, self.resting, strict=True):
                tensor.data = resting
            self.present = False
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # gives the memory back to the trainer, another process on the same device


class Visits:
    """Counts the callers that need the weights. The first caller brings the weights, the last one drops them.

    `wake` guards all state and is notified of changes; `busy`, called under it, says whether a forward pass still runs.
    `resting` None: the weights are always on the device.
    """

    def __init__(self, wake: Condition, resting: HostWeights | None, busy: Callable[[], bool]) -> None:
        self.wake, self.resting, self.busy = wake, resting, busy
        self.count = 0

    @property
    def may_read(self) -> bool:
        """Whether a forward pass may begin."""
        return self.resting is None or self.count > 0

    @property
    def over(self) -> bool:
        """Whether no forward pass runs and a colocated teacher's weights are off the device: they may be replaced."""
        return not self.busy() and (self.resting is None or not self.resting.present)

    @contextmanager
    def visit(self) -> Iterator[None]:
        """The weights are on the device as long as any caller is inside. Raises RuntimeError where they do not fit."""
        with self.wake:
            if self.resting is not None:
                self.resting.bring()
            self.count += 1
            self.wake.notify_all()
        try:
            yield
        finally:
            with self.wake:
                self.count -= 1
                if self.resting is not None:
                    # A forward pass that nobody waits for may still run; its weights must stay until it ends.
                    self.wake.wait_for(lambda: self.count > 0 or not self.busy())
                    if not self.count:
                        self.resting.drop()
                    self.wake.notify_all()
