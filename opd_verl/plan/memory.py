"""Device memory by role, in bytes, as a sum of named parts; pure arithmetic on shapes and layouts.

A trainer's device is in one phase at a time: rollout, teacher (where colocated), log-probs, update. Each phase has its
own peak; a role fits where its largest does.
"""

from collections.abc import Mapping

from opd_verl.plan.devices import CONTEXT_GIB, GIB
from opd_verl.plan.layout import RolloutLayout, TeacherLayout, TrainerLayout
from opd_verl.plan.shape import ModelShape

Parts = Mapping[str, float]
"""Bytes of one device by what they hold."""
CONTEXT, PARAMS, GRADIENTS, OPTIMIZER = "context", "parameters", "gradients", "optimizer"
GATHERED, ACTIVATIONS, HEAD, LOGITS = "gathered layers", "activations", "head chunk", "logits"
WEIGHTS, CACHE, ROLLOUT, TEACHER, STATES = "weights", "KV cache", "rollout server", "teacher", "kept states"
SLEEPING_GIB = 1.0
"""What a rollout server that sleeps still holds: CUDA's context, workspaces and graphs."""
IN_FLIGHT = 2
"""Layers that FSDP holds whole at one time: the one that runs and the one that is fetched."""


def shard_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """A device's share of the parameters; its gradients, and each of Adam's moments, are as large."""
    return trainer.state_bytes * student.total / trainer.shards


def params_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """The student's share; the reference's too where weights are not offloaded, since both then stay on the device."""
    return shard_bytes(trainer, student) * (1 + trainer.reference * (not trainer.offload_params))


def resident(trainer: TrainerLayout, student: ModelShape) -> Parts:
    """What the trainer keeps on a device between its own phases."""
    found = {CONTEXT: CONTEXT_GIB * GIB}
    if not trainer.offload_params:
        found[PARAMS] = params_bytes(trainer, student)
    if not trainer.offload_optimizer:
        found[OPTIMIZER] = 2 * shard_bytes(trainer, student)
    return found


def log_probs(trainer: TrainerLayout, student: ModelShape) -> Parts:
    """The pass over old log-probs: no gradients; activations of the layer that runs alone."""
    tokens, size = trainer.log_prob_tokens, trainer.compute_bytes
    wide = tokens * size * (3 * student.intermediate + 4 * student.hidden)
    return {
        **resident(trainer, student),
        PARAMS: params_bytes(trainer, student),
        GATHERED: gathered(trainer, student, 1),
        ACTIVATIONS: wide,
        **head(trainer, student, tokens, gradients=False),
    }


def update(trainer: TrainerLayout, student: ModelShape, saved_bytes: float) -> Parts:
    """Forward and backward of one micro-batch while gradients of those before it are kept.

    Args:
        saved_bytes: of a layer and a token (`activations.saved_bytes`).
    """
    shard, tokens = shard_bytes(trainer, student), trainer.update_tokens
    boundaries = tokens * student.hidden * trainer.compute_bytes * student.layers
    whole = tokens * saved_bytes * (1 if trainer.checkpointing else student.layers)
    transient = 2 * tokens * student.intermediate * trainer.compute_bytes
    return {
        CONTEXT: CONTEXT_GIB * GIB,
        PARAMS: params_bytes(trainer, student),
        GRADIENTS: shard,
        OPTIMIZER: 2 * shard,
        # In the backward pass with their gradients: in the compute dtype, and in float32 on their way to the shards.
        GATHERED: gathered(trainer, student, 2 + 4 / trainer.compute_bytes),
        ACTIVATIONS: whole + transient + (boundaries if trainer.checkpointing else 0.0),
        **head(trainer, student, tokens, gradients=True),
    }


def gathered(trainer: TrainerLayout, student: ModelShape, copies: float) -> float:
    """Whole parameters: the root's (embeddings, final norm, LM head) and the layers in flight, `copies` times."""
    return copies * trainer.compute_bytes * (student.root + min(IN_FLIGHT, student.layers) * student.layer)


def head(trainer: TrainerLayout, student: ModelShape, tokens: int, gradients: bool) -> Parts:
    """Rows of logits: a chunk on the fused path; else the micro-batch's, their float32 copy and the gradient."""
    size = trainer.compute_bytes
    if not trainer.fused:
        return {LOGITS: tokens * student.vocabulary * (size + 4 + (4 if gradients else 0))}
    states = tokens * student.hidden * size * (2 if gradients else 1)
    chunk = min(trainer.head_rows, tokens) * size + 2 * trainer.head_block * 4
    return {HEAD: chunk * student.vocabulary + states}


def rollout(trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, device_gib: float) -> Parts:
    """While responses are sampled: the server takes its share of the whole device, KV cache where nothing else is."""
    weights = server.weight_bytes * student.total / server.tensor_parallel
    cache = max(server.memory_share * device_gib * GIB - weights - SLEEPING_GIB * GIB, 0.0)
    return {**resident(trainer, student), WEIGHTS: weights, CACHE: cache, ROLLOUT: SLEEPING_GIB * GIB}


def asleep(server: RolloutLayout, awake: Parts) -> Parts:
    """What the server holds in the trainer's phases."""
    return {ROLLOUT: SLEEPING_GIB * GIB} if server.sleeps else {key: awake[key] for key in (WEIGHTS, CACHE, ROLLOUT)}


def scoring(teacher: TeacherLayout, model: ModelShape) -> Parts:
    """A device of one of our teacher's replicas in its forward pass."""
    size, tokens = teacher.weight_bytes, teacher.batch_tokens
    layers = model.layers * model.layer / teacher.shards
    flying = IN_FLIGHT * model.layer if teacher.shards > 1 else 0
    return {
        CONTEXT: CONTEXT_GIB * GIB,
        TEACHER: size * (model.root + layers + flying),
        ACTIVATIONS: tokens * size * (3 * model.intermediate + 5 * model.hidden),
        HEAD: teacher.head_rows * model.vocabulary * (size + 4 + 4),
        STATES: 0.0 if teacher.colocated else teacher.state_gib * GIB,
    }


def total(parts: Parts) -> float:
    """Bytes in all."""
    return sum(parts.values())
