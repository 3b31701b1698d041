"""A Scorer's source of hidden states: here a model in this process, in `shard_reader` a model on several devices.

Shapes: R response tokens, T tokens, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor, nn

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import SHARING_PAYS, shared_saving
from opd_verl.teacher.scoring.body import can_share, is_packing, read_packed, read_padded, read_shared
from opd_verl.teacher.snapshot import load_snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OutOfStepError(RuntimeError):
    """A sharded reader failed between two collectives and cannot be used again; its process must end."""


@dataclass(frozen=True)
class ModelSpec:
    """A causal LM and how to load it. Arguments of `Scorer.from_pretrained`."""

    path: str
    dtype: str
    device: str
    attn_implementation: str
    trust_remote_code: bool


class Reader(Protocol):
    """A causal LM and the way it reads rollouts."""

    model: "PreTrainedModel"
    body: "PreTrainedModel"
    """The decoder under the LM head."""
    packs: bool
    """Whether rows lie behind one another without padding: a batch then costs the sum of its rows."""
    may_share: bool
    """Whether a prompt may be read once for several rollouts."""
    ranks: int
    """Devices that read one batch together, each within the token budget."""

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """Last hidden states of the response positions, [sum R, H] in the model's dtype; every R > 0."""
        ...

    def logits(self, ids_T: Tensor) -> Tensor:
        """The model's own logits [T, vocabulary] on one row."""
        ...

    def take(self, snapshot: str) -> None:
        """Copies the weights of a snapshot's folder into the model (`opd_verl.teacher.snapshot`)."""
        ...


class LocalReader:
    """A model that lies whole on one device."""

    ranks = 1

    def __init__(self, model: "PreTrainedModel", may_share: bool = True) -> None:
        self.model: PreTrainedModel = model
        self.body: PreTrainedModel = model.get_decoder()
        self.packs = is_packing(self.body.config)
        self.may_share = may_share and can_share(self.body.config)

    @property
    def device(self) -> torch.device:
        """The device that the model's weights are on now; a colocated teacher's weights move."""
        return self.model.device

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """The checkpoint on its device."""
        model = load_whole(spec)
        move(model, spec.device)
        return cls(model)

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """`Reader.rows`."""
        share = self.may_share and shared_saving(requests) >= SHARING_PAYS
        read = read_shared if share else read_packed if self.packs else read_padded
        return read(self.body, requests, self.device)

    def logits(self, ids_T: Tensor) -> Tensor:
        """`Reader.logits`."""
        return self.model(input_ids=ids_T[None].to(self.device), use_cache=False).logits[0]

    def take(self, snapshot: str) -> None:
        """`Reader.take`."""
        load_snapshot(self.model, snapshot)


def load_whole(spec: ModelSpec) -> "PreTrainedModel":
    """The checkpoint's causal LM on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        spec.path,
        dtype=spec.dtype,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
    )


def move(model: nn.Module, device: str) -> None:
    """Moves a model in place. The argument is an nn.Module because transformers' own `to` has no usable type."""
    model.to(device)


def default_device() -> str:
    """CUDA if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
