"""Reads and writes fields of a batch's rows in TransferQueue, and sets flags that a batch carries to verl's workers."""

from collections.abc import Mapping, Sequence
from typing import cast

import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from opd_verl.training.verl_types import Fields


def partition(batch: KVBatchMeta) -> str:
    """The partition of TransferQueue in which the batch's rows lie."""
    assert batch.partition_id is not None, "verl names a partition for every training batch"
    return batch.partition_id


def read_fields(batch: KVBatchMeta, names: Sequence[str]) -> Fields:
    """Fields of the batch's rows, jagged. Names that no row has are left out."""
    return as_fields(read_rows(batch, names))


def as_fields(rows: TensorDict) -> Fields:
    """The rows' tensors under the type that this package uses for them."""
    return cast(Fields, rows)


def read_rows(batch: KVBatchMeta, names: Sequence[str]) -> TensorDict:
    """`read_fields` with TransferQueue's own type, for columns that are not tensors."""
    return tq.kv_batch_get(keys=batch.keys, partition_id=partition(batch), select_fields=list(names))


def write_fields(batch: KVBatchMeta, fields: Mapping[str, Tensor]) -> KVBatchMeta:
    """Writes jagged fields of the batch's rows."""
    record = TensorDict(dict(fields), batch_size=len(batch))
    return tq.kv_batch_put(keys=batch.keys, partition_id=partition(batch), fields=record)


def set_flags(batch: KVBatchMeta, **flags: int) -> None:
    """Sets flags in place. They reach the worker calls that are made with this very batch, as non-tensor data.

    `kv_batch_put` returns a new batch without flags, and verl's own steps return such batches.
    """
    batch.extra_info = {**(batch.extra_info or {}), **flags}
