"""Where a Scorer's hidden states come from: the model of this process here, a model on several devices in
`shard_reader`.

Shapes: R response tokens, T tokens, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import SHARING_PAYS, shared_saving
from opd_verl.teacher.scoring.body import can_share, is_packing, read_packed, read_padded, read_shared
from opd_verl.teacher.snapshot import load_snapshot


class OutOfStepError(RuntimeError):
    """A reader failed half-way and cannot be used again; its process must end."""


@dataclass(frozen=True)
class ModelSpec:
    """Which causal LM, and how it is loaded; the arguments of `Scorer.from_pretrained`."""

    path: str
    dtype: str
    device: str
    attn_implementation: str
    trust_remote_code: bool


class Reader(Protocol):
    """A causal LM and the way it reads rollouts."""

    model: Any
    body: Any
    """The decoder under its LM head."""
    packs: bool
    """A batch costs the sum of its rows; else it is padded to the longest."""
    may_share: bool
    """Rollouts of one prompt may read it together."""
    ranks: int
    """Devices that read one batch together, each within the token budget."""

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """Last hidden states of the response positions, [sum R, H] in the model's dtype; every R > 0."""
        ...

    def logits(self, ids_T: Tensor) -> Tensor:
        """The model's own logits [T, vocabulary] on one row."""
        ...

    def take(self, snapshot: str) -> None:
        """Replaces the weights by those of a snapshot's folder (`opd_verl.teacher.snapshot`)."""
        ...


class LocalReader:
    """A model that lies whole on one device."""

    ranks = 1

    def __init__(self, model: Any, may_share: bool = True) -> None:
        self.model, self.body = model, model.get_decoder()
        self.packs = is_packing(self.body.config)
        self.may_share = may_share and can_share(self.body.config)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are now."""
        return self.model.get_input_embeddings().weight.device

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """The checkpoint on its device."""
        return cls(load_whole(spec).to(spec.device))

    def rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """As `Reader.rows`."""
        share = self.may_share and shared_saving(requests) >= SHARING_PAYS
        read = read_shared if share else read_packed if self.packs else read_padded
        return read(self.body, requests, self.device)

    def logits(self, ids_T: Tensor) -> Tensor:
        """As `Reader.logits`."""
        return self.model(input_ids=ids_T[None].to(self.device), use_cache=False).logits[0]

    def take(self, snapshot: str) -> None:
        """As `Reader.take`."""
        load_snapshot(self.model, snapshot)


def load_whole(spec: ModelSpec) -> Any:
    """The checkpoint's causal LM on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        spec.path,
        dtype=spec.dtype,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
    )


def default_device() -> str:
    """CUDA if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
