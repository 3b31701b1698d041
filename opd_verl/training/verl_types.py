"""Types of the objects that verl hands to training. verl leaves them open; only the members that we use are declared.

`Any` ends here: files of this package name these types instead.
"""

from typing import Protocol, TypedDict, cast, final

from tensordict import TensorDict
from torch import Tensor
from torch.nn import Module
from verl.utils import tensordict_utils as tu


class Fields(Protocol):
    """Tensors by name, one row for each rollout: a `TensorDict` at run time.

    The tensors are jagged (`torch.nested`, one row per rollout) until `to_padded_tensor`. The type is not `TensorDict`
    because its `__getitem__` is annotated as a union of all types that any index may give.
    """

    def __getitem__(self, name: str, /) -> Tensor: ...

    def __setitem__(self, name: str, value: Tensor, /) -> None: ...

    def __contains__(self, name: str, /) -> bool: ...

    def __len__(self) -> int: ...

    def get(self, name: str, default: None, /) -> Tensor | None:
        """A field, or None where there is none of this name."""
        ...

    def copy(self) -> "Fields":
        """A shallow copy: replacing a field of the copy leaves this object as it is."""
        ...

    def select(self, *names: str) -> "Fields":
        """These fields alone."""
        ...

    def exclude(self, *names: str) -> "Fields":
        """All other fields."""
        ...

    def to_padded_tensor(self) -> "Fields":
        """Every jagged field as a padded tensor [B, R, ...], 0 behind a row's end."""
        ...


class Output(Protocol):
    """Output of the Hugging Face model. Under an open `HeadSwitch` request, `logits` is a tuple of its answers."""

    logits: Tensor


class HasOutputEmbeddings(Protocol):
    """A Hugging Face language model."""

    def get_output_embeddings(self) -> Module | None:
        """The LM head."""
        ...


@final
class PackedArgs(TypedDict):
    """verl's `output_args` where sequences are packed into one row (`use_remove_padding=true`)."""

    temperature_is_one: bool
    temperature_rmpad: Tensor
    """Rollout temperature of every position, float32 [sum L]."""


@final
class PaddedArgs(TypedDict):
    """verl's `output_args` where every sequence is a padded row."""

    temperature_is_one: bool
    temperature: Tensor
    """Rollout temperature of every sequence, float32 [B]."""


OutputArgs = PackedArgs | PaddedArgs


def as_tensordict(data: Fields) -> TensorDict:
    """`data` under verl's type, for a call into verl."""
    return cast(TensorDict, data)


def int_flag(data: Fields, name: str, default: int) -> int:
    """A number that travels beside the tensors of a batch; verl calls it non-tensor data."""
    return int(cast(int, tu.get_non_tensor_data(as_tensordict(data), name, default=default)))


def bool_flag(data: Fields, name: str) -> bool:
    """A switch that travels beside the tensors of a batch; False where it is absent."""
    return bool(tu.get_non_tensor_data(as_tensordict(data), name, default=False))


def set_int(data: Fields, name: str, value: int) -> None:
    """Puts a number beside the tensors of a batch, in place."""
    tu.assign_non_tensor(as_tensordict(data), **{name: value})


def number(data: Fields, name: str) -> int:
    """A number beside the tensors that verl always sets. Raises KeyError where it is absent."""
    return cast(int, data[name])
