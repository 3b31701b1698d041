"""What a step would be spent on: arithmetic from data sheets and assumed efficiencies, for shares rather than seconds.

Left out: collectives, the host's work, and the imbalance of responses; verl waits for the longest one.
"""

from collections.abc import Mapping

from opd_verl.plan.devices import FORWARD_SHARE, LINK_SHARE, READ_SHARE, TRAIN_SHARE, Device
from opd_verl.plan.layout import RolloutLayout, TeacherLayout, TrainerLayout
from opd_verl.plan.memory import shard_bytes
from opd_verl.plan.shape import ModelShape

GEN, WAIT, LOG_PROB, REFERENCE, UPDATE, OFFLOAD = (
    "gen",
    "waiting for the teacher",
    "old_log_prob",
    "ref",
    "update_actor",
    "offload",
)
TOKEN_OVERHEAD_S = 0.001
"""Of a decoding step, whatever the model: scheduling and sampling."""
ALL_REDUCE_S = 15e-6
"""Of one token's hidden states between the devices of a tensor-parallel server, twice in a layer."""
GIGA, TERA = 1e9, 1e12


def forward_flops(model: ModelShape, length: float) -> float:
    """Of a token in a sequence of this length: 2 per parameter, and attention to half of the sequence."""
    return 2 * model.matrix + 2 * model.attention_width * length


def forward_seconds(model: ModelShape, tokens: float, length: float, devices: float, device: Device) -> float:
    """A forward pass over all tokens, spread evenly."""
    return tokens * forward_flops(model, length) / (devices * device.tflops * TERA * FORWARD_SHARE)


def concurrent(trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, cache_bytes: float) -> int:
    """Rollouts that one server can hold at a time: what its KV cache has room for, at their longest."""
    token = student.kv_width * server.weight_bytes / server.tensor_parallel
    return int(cache_bytes / (token * trainer.longest))


def gen_seconds(
    trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, device: Device, cache_bytes: float
) -> float:
    """Decoding reads all weights and the cached keys and values once per token; waves where the cache is too small."""
    rows = -(-trainer.rollouts // server.engines)
    at_once = max(min(rows, concurrent(trainer, server, student, cache_bytes)), 1)
    held = at_once * (trainer.prompt_tokens + trainer.response_tokens / 2) * student.kv_width
    read = server.weight_bytes * (student.active + held) / server.tensor_parallel
    token = max(
        read / (device.bandwidth_gbs * GIGA * READ_SHARE),
        at_once * 2 * student.matrix / (server.tensor_parallel * device.tflops * TERA * FORWARD_SHARE),
    )
    prefill = forward_seconds(
        student, rows * trainer.prompt_tokens, trainer.prompt_tokens, server.tensor_parallel, device
    )
    exchange = 2 * student.layers * ALL_REDUCE_S if server.tensor_parallel > 1 else 0.0
    return prefill + -(-rows // at_once) * trainer.response_tokens * (token + exchange + TOKEN_OVERHEAD_S)


def teacher_tokens(trainer: TrainerLayout, teacher: TeacherLayout) -> int:
    """Tokens of a sequence as a teacher reads it."""
    return trainer.longest + teacher.context_tokens


def teacher_seconds(trainer: TrainerLayout, teacher: TeacherLayout, model: ModelShape, device: Device) -> float:
    """The forward passes over all rollouts, spread over all replicas; a colocated teacher's way to its device too."""
    length = teacher_tokens(trainer, teacher)
    devices = trainer.devices if teacher.colocated else teacher.devices
    found = forward_seconds(model, trainer.rollouts * length, length, devices, device)
    if teacher.colocated:
        found += teacher.weight_bytes * model.total / (device.host_gbs * GIGA * LINK_SHARE)
    return found


def waiting(trainer: TrainerLayout, teacher: TeacherLayout, busy: float, gen: float) -> float:
    """What the trainer waits for: all of a colocated teacher; else what generation does not hide, and a batch."""
    if teacher.colocated:
        return busy
    length = teacher_tokens(trainer, teacher)
    batches = max(trainer.rollouts * length / teacher.replicas / teacher.batch_tokens, 1.0)
    return max(busy - gen, 0.0) + busy / batches


def update_seconds(trainer: TrainerLayout, student: ModelShape, device: Device) -> float:
    """Backward is two forwards; with gradient checkpointing, one more."""
    passes = 4 if trainer.checkpointing else 3
    flops = passes * trainer.rollouts * trainer.longest * forward_flops(student, trainer.longest)
    return flops / (trainer.devices * device.tflops * TERA * TRAIN_SHARE)


def offload_seconds(trainer: TrainerLayout, student: ModelShape, device: Device) -> float:
    """Weights to the device and back around log-probs and update, optimizer around the update."""
    moved = shard_bytes(trainer, student) * (4 * trainer.offload_params + 4 * trainer.offload_optimizer)
    return moved / (device.host_gbs * GIGA * LINK_SHARE)


def step_seconds(
    trainer: TrainerLayout,
    server: RolloutLayout,
    student: ModelShape,
    device: Device,
    cache_bytes: float,
    teachers: Mapping[str, tuple[TeacherLayout, ModelShape]],
) -> dict[str, float]:
    """The parts of a step, one after the other; several teachers score at the same time."""
    length = trainer.longest
    gen = gen_seconds(trainer, server, student, device, cache_bytes)
    log_prob = forward_seconds(student, trainer.rollouts * length, length, trainer.devices, device)
    waits = [
        waiting(trainer, teacher, teacher_seconds(trainer, teacher, model, device), gen)
        for teacher, model in teachers.values()
    ]
    found = {
        GEN: gen,
        WAIT: max(waits, default=0.0),
        LOG_PROB: log_prob,
        REFERENCE: log_prob * trainer.reference,
        UPDATE: update_seconds(trainer, student, device),
        OFFLOAD: offload_seconds(trainer, student, device),
    }
    return {name: value for name, value in found.items() if value}
