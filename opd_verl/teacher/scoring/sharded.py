"""A causal LM whose decoder layers are spread over the devices of a process group (FSDP2), for teachers too large for
one device. While it loads, rank 0 holds a whole copy in host memory; the other ranks begin with an empty skeleton.

Embeddings, final norm and LM head stay whole on every rank: rank 0 answers late questions with the head alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from opd_verl.teacher.scoring.reader import ModelSpec, load_whole, move

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOST = "127.0.0.1"
"""The ranks of a group share a node."""
IDLE = timedelta(days=30)
"""Timeout of collectives. Ranks wait for the next batch inside a broadcast, maybe for days; hangs are found by the
pool's own timeout."""
Sent = TypeVar("Sent")


def open_store(world: int) -> dist.TCPStore:
    """Rank 0's meeting point, on a free port."""
    return dist.TCPStore(HOST, 0, world, is_master=True, wait_for_workers=False, timeout=IDLE)


def find_store(port: int, world: int) -> dist.TCPStore:
    """Another rank's connection to rank 0's meeting point."""
    return dist.TCPStore(HOST, port, world, is_master=False, timeout=IDLE)


def init_group(rank: int, world: int, store: dist.TCPStore, device: str) -> None:
    """Makes this process one of the `world` ranks, waiting for the others."""
    kind = torch.device(device).type
    # Messages are Python objects in host memory, so a group on GPUs needs gloo beside NCCL.
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=IDLE)


def from_leader(message: Sent | None = None) -> Sent:
    """Rank 0's object on every rank. All ranks must call it; only rank 0 gives a message."""
    box = [message]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    received = box[0]
    assert received is not None, "rank 0 always gives a message"
    return received


@dataclass(frozen=True)
class Traits:
    """The parts of a loaded model that neither its weights nor a skeleton made from its config hold, all by name."""

    dtypes: dict[str, torch.dtype]
    ties: dict[str, str]
    """Tied parameters, for example embeddings: each name -> name of the parameter that it shares."""
    buffers: dict[str, Tensor]
    """All buffers, also buffers that no checkpoint holds, like rotary angles."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The traits of a model on the CPU."""
        named = list(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        ties = {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}
        return cls({name: p.dtype for name, p in named}, ties, dict(model.named_buffers()))

    def set_dtypes(self, model: nn.Module) -> None:
        """Gives each parameter the loaded model's dtype. Call it before sharding, which fixes the dtypes."""
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(self.dtypes[name])

    def tie_and_fill(self, model: nn.Module, device: str) -> None:
        """Ties parameters and fills buffers. Call it after `to_empty`, which gives each parameter its own memory."""
        for name, source in self.ties.items():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(source))
        for name, value in self.buffers.items():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, value.to(device))


def load_sharded(spec: ModelSpec) -> "PreTrainedModel":
    """The checkpoint, sharded over the process group; all ranks must call it.

    Raises ValueError for a model that does not say which of its modules are the layers.
    """
    model, weights, traits = _emptied(load_whole(spec)) if dist.get_rank() == 0 else (_skeleton(spec), {}, None)
    # The order matters: FSDP shards a model on the meta device, memory comes after that, and weights last, shard by
    # shard. No rank but 0 ever holds the whole model, not even in host memory.
    traits = from_leader(traits)
    traits.set_dtypes(model)
    _shard_layers(model, spec.device)
    model.to_empty(device=spec.device)
    traits.tie_and_fill(model, spec.device)
    fill(model, weights)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies rank 0's whole weights into every rank's shards, in place. All ranks must call it; the others give {}.

    Raises RuntimeError if names or shapes differ.
    """
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(weights), options=options)


def _emptied(model: "PreTrainedModel") -> "tuple[PreTrainedModel, dict[str, Tensor], Traits]":
    """The model without memory, its weights, and its traits."""
    weights, traits = model.state_dict(), Traits.of(model)
    move(model, "meta")
    return model, weights, traits


def _skeleton(spec: ModelSpec) -> "PreTrainedModel":
    """The model as its config describes it, without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = spec.trust_remote_code
    config = AutoConfig.from_pretrained(spec.path, trust_remote_code=trust)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=spec.attn_implementation, trust_remote_code=trust
        )


def _shard_layers(model: "PreTrainedModel", device: str) -> None:
    """Shards each layer by itself: its weights are gathered while the layer before it runs."""
    body, kinds = model.get_decoder(), set(model._no_split_modules or ())
    layers = [module for module in body.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ValueError(f"{type(model).__name__} names no layers (_no_split_modules) to shard; use shards=1")
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    whole = set(body.parameters()) - {weight for layer in layers for weight in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # The body is the FSDP root, which starts the gathering; its own parameters (embeddings, norm) stay whole.
    fully_shard(body, mesh=mesh, ignored_params=whole)
