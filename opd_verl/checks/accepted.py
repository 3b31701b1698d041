"""The printed line with the checked facts of each accepted teacher, and the check that its weights fit a device."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import TeacherConfig

Tokenizer = PreTrainedTokenizerBase
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight by dtype."""


def parameter_count(path: str) -> int | None:
    """Parameters in the safetensors files of a folder, from their headers; None where there are none."""
    files = sorted(Path(path).glob("*.safetensors"))
    return sum(map(parameters_in, files)) if files else None


def parameters_in(file: Path) -> int:
    """Parameters in one safetensors file; only its header is read."""
    with safe_open(file, framework="pt") as tensors:
        return sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118


def weight_bytes(teacher: TeacherConfig, config: PretrainedConfig) -> int | None:
    """Bytes of the teacher's weights on one device, in the dtype that it loads in; None where the files do not say."""
    count = parameter_count(teacher.path)
    dtype = teacher.dtype if teacher.dtype in BYTES else str(getattr(config, "dtype", None)).removeprefix("torch.")
    return None if count is None else count * BYTES.get(dtype, 2) // teacher.shards


def device_bytes() -> int:
    """Memory of this machine's first accelerator, or of the host where there is none; bytes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def check_memory(key: str, teacher: TeacherConfig, needed: int | None) -> None:
    """The weights alone must fit a device like this machine's; `needed` is `weight_bytes`."""
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
    key: str,
    teacher: TeacherConfig,
    config: PretrainedConfig,
    needed: int | None,
    student: Tokenizer,
    own: Tokenizer,
    longest: int,
) -> str:
    """The line that the run prints.

    Args:
        key: the teacher's section.
        config: the text part of the teacher's config.
        needed: `weight_bytes`.
        student, own: the tokenizers of student and teacher.
        longest: tokens of prompt, context and response together.
    """
    accepted = "; ".join(facts(teacher, config, needed, student, own, longest))
    return f"opd_verl: {key}.path={teacher.path} accepted: {accepted}"


def facts(
    teacher: TeacherConfig,
    config: PretrainedConfig,
    needed: int | None,
    student: Tokenizer,
    own: Tokenizer,
    longest: int,
) -> Iterator[str]:
    """The checked facts of a teacher, and harmless differences from the student."""
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
        yield f"another {' and '.join(others)} than the student's; it reads the student's prompts"
