"""One line for each teacher that says with what it was accepted, and whether its weights fit a device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import TeacherConfig

BYTES = {"float32": 4, "bfloat16": 2}


def parameter_count(path: str) -> int | None:
    """Parameters in the safetensors files of a folder, from their headers; None where there are none."""
    files = sorted(Path(path).glob("*.safetensors"))
    return sum(map(parameters_in, files)) if files else None


def parameters_in(file: Path) -> int:
    """Numbers in one safetensors file; reads its header alone."""
    with safe_open(file, framework="pt") as tensors:
        return sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118


def weight_bytes(teacher: TeacherConfig, config: PretrainedConfig) -> int | None:
    """Bytes of the teacher's weights on one device, in the dtype that it loads in; None where nobody knows."""
    count = parameter_count(teacher.path)
    dtype = teacher.dtype if teacher.dtype in BYTES else str(getattr(config, "dtype", None)).removeprefix("torch.")
    return None if count is None else count * BYTES.get(dtype, 2) // teacher.shards


def device_bytes() -> int:
    """Memory of this machine's first accelerator; of its host where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def check_memory(key: str, teacher: TeacherConfig, needed: int | None) -> None:
    """The weights alone must fit a device like this machine's."""
    there = device_bytes()
    if needed is not None and needed > there:
        problem = f"{gib(needed)} of weights per device ({teacher.dtype}), and a device has {gib(there)}"
        raise ConfigError(
            f"{key}.shards", teacher.shards, problem, f"{key}.shards={-(-needed // there) * teacher.shards}"
        )


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.3g} GiB"


def line(
    key: str, teacher: TeacherConfig, config: PretrainedConfig, needed: int | None, student: Any, own: Any, longest: int
) -> str:
    """`needed` is `weight_bytes`, `own` the teacher's tokenizer, `longest` prompt, context and response together."""
    said = "; ".join(facts(teacher, config, needed, student, own, longest))
    return f"opd_verl: {key}.path={teacher.path} accepted: {said}"


def facts(
    teacher: TeacherConfig, config: PretrainedConfig, needed: int | None, student: Any, own: Any, longest: int
) -> Iterator[str]:
    """What was checked, and what differs from the student without harm."""
    size = "weights of unknown size" if needed is None else f"{gib(needed)} of weights per device"
    yield f"{config.model_type}, {teacher.dtype}, {size}"
    padding = config.vocab_size - len(student)
    yield f"the student's {len(student)} tokens" + (f", {padding} padding rows cut off" if padding else "")
    yield f"ends with {own.eos_token!r}"
    yield f"temperature {teacher.temperature:g}"
    limit = getattr(config, "max_position_embeddings", None)
    yield f"context {limit or 'without limit'} for at most {longest}"
    others = sorted(name for name in ("bos_token", "pad_token") if getattr(own, name) != getattr(student, name))
    if others:
        yield f"another {' and '.join(others)} than the student's, whose prompts it reads"
