"""The time of a step, by part: arithmetic from data sheets and assumed efficiencies. Trust the shares, not the seconds.

Left out: collectives, the host's work, and the imbalance of responses (verl waits for the longest response).
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
"""Assumed seconds of scheduling and sampling in a decoding step, for every model."""
ALL_REDUCE_S = 15e-6
"""Assumed seconds of an all-reduce of one token's hidden states in a tensor-parallel server; a layer has two."""
GIGA, TERA = 1e9, 1e12


def forward_flops(model: ModelShape, length: float) -> float:
    """Operations of a token in a sequence of this length: 2 per parameter, and attention to half of the sequence."""
    # Attention: two products (scores, values) of 2 operations each, over length / 2 earlier tokens on average.
    return 2 * model.matrix + 2 * model.attention_width * length


def forward_seconds(model: ModelShape, tokens: float, length: float, devices: float, device: Device) -> float:
    """Seconds of a forward pass over all tokens, spread evenly over the devices."""
    return tokens * forward_flops(model, length) / (devices * device.tflops * TERA * FORWARD_SHARE)


def concurrent(trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, cache_bytes: float) -> int:
    """Rollouts of full length that fit the KV cache of one server at a time."""
    token = student.kv_width * server.weight_bytes / server.tensor_parallel
    return int(cache_bytes / (token * trainer.longest))


def gen_seconds(
    trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, device: Device, cache_bytes: float
) -> float:
    """Seconds of generation: each decoding step reads all weights and the cached keys and values of all its rollouts.

    Where the cache is too small for all rollouts, they come in waves.
    """
    rows = -(-trainer.rollouts // server.engines)
    at_once = max(min(rows, concurrent(trainer, server, student, cache_bytes)), 1)
    held = at_once * (trainer.prompt_tokens + trainer.response_tokens / 2) * student.kv_width
    read = server.weight_bytes * (student.active + held) / server.tensor_parallel
    # A decoding step is bound by memory reads for few rollouts, and by arithmetic for many.
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
    """Tokens of a sequence as a teacher reads it, privileged context included."""
    return trainer.longest + teacher.context_tokens


def teacher_seconds(trainer: TrainerLayout, teacher: TeacherLayout, model: ModelShape, device: Device) -> float:
    """Seconds of a teacher's forward passes over all rollouts, plus the copy of a colocated teacher to its device."""
    length = teacher_tokens(trainer, teacher)
    devices = trainer.devices if teacher.colocated else teacher.devices
    busy = forward_seconds(model, trainer.rollouts * length, length, devices, device)
    if teacher.colocated:
        busy += teacher.weight_bytes * model.total / (device.host_gbs * GIGA * LINK_SHARE)
    return busy


def waiting(trainer: TrainerLayout, teacher: TeacherLayout, busy: float, gen: float) -> float:
    """Seconds that the trainer waits for a teacher.

    A colocated teacher works while the trainer waits. Any other teacher works beside generation: the trainer waits for
    the part that generation does not hide, and for the last batch.
    """
    if teacher.colocated:
        return busy
    length = teacher_tokens(trainer, teacher)
    batches = max(trainer.rollouts * length / teacher.replicas / teacher.batch_tokens, 1.0)
    return max(busy - gen, 0.0) + busy / batches


def update_seconds(trainer: TrainerLayout, student: ModelShape, device: Device) -> float:
    """Seconds of an update: one forward pass and a backward of two; with gradient checkpointing, one forward more."""
    passes = 4 if trainer.checkpointing else 3
    flops = passes * trainer.rollouts * trainer.longest * forward_flops(student, trainer.longest)
    return flops / (trainer.devices * device.tflops * TERA * TRAIN_SHARE)


def offload_seconds(trainer: TrainerLayout, student: ModelShape, device: Device) -> float:
    """Seconds of offloading: weights go to the device and back twice (log-probs, update), the optimizer once."""
    # Weights go twice there and back, the optimizer's two moments once: each is 4 times the bytes of a shard.
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
    """Seconds of the parts of a step, which follow one another; several teachers score at the same time."""
    length = trainer.longest
    gen = gen_seconds(trainer, server, student, device, cache_bytes)
    log_prob = forward_seconds(student, trainer.rollouts * length, length, trainer.devices, device)
    waits = [
        waiting(trainer, teacher, teacher_seconds(trainer, teacher, model, device), gen)
        for teacher, model in teachers.values()
    ]
    parts = {
        GEN: gen,
        WAIT: max(waits, default=0.0),
        LOG_PROB: log_prob,
        REFERENCE: log_prob * trainer.reference,
        UPDATE: update_seconds(trainer, student, device),
        OFFLOAD: offload_seconds(trainer, student, device),
    }
    return {name: value for name, value in parts.items() if value}
