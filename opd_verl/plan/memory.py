"""Device memory by phase, in bytes, as a sum of named parts; pure arithmetic on shapes and layouts.

A trainer's device is in one phase at a time: rollout, teacher (where colocated), log-probs, update. A run fits where
the peak of each phase fits.
"""

from collections.abc import Mapping

from opd_verl.plan.devices import CONTEXT_GIB, GIB
from opd_verl.plan.layout import RolloutLayout, TeacherLayout, TrainerLayout
from opd_verl.plan.shape import ModelShape

Parts = Mapping[str, float]
"""Bytes of one device, by the name of their use."""
CONTEXT, PARAMS, GRADIENTS, OPTIMIZER = "context", "parameters", "gradients", "optimizer"
GATHERED, ACTIVATIONS, HEAD, LOGITS = "gathered layers", "activations", "head chunk", "logits"
WEIGHTS, CACHE, ROLLOUT, TEACHER, STATES = "weights", "KV cache", "rollout server", "teacher", "kept states"
SLEEPING_GIB = 1.0
"""GiB that a sleeping rollout server still holds: CUDA's context, workspaces and graphs."""
IN_FLIGHT = 2
"""Layers that FSDP holds whole at one time: the running layer and the next one, which is being gathered."""


def shard_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """Bytes of a device's share of the parameters. The gradients and each Adam moment are as large."""
    return trainer.state_bytes * student.total / trainer.shards


def params_bytes(trainer: TrainerLayout, student: ModelShape) -> float:
    """Bytes of a device's share of the student, and of the reference policy where no weights are offloaded."""
    return shard_bytes(trainer, student) * (1 + trainer.reference * (not trainer.offload_params))


def resident(trainer: TrainerLayout, student: ModelShape) -> Parts:
    """The parts that the trainer keeps on a device outside of its own phases."""
    parts = {CONTEXT: CONTEXT_GIB * GIB}
    if not trainer.offload_params:
        parts[PARAMS] = params_bytes(trainer, student)
    if not trainer.offload_optimizer:
        parts[OPTIMIZER] = 2 * shard_bytes(trainer, student)
    return parts


def log_probs(trainer: TrainerLayout, student: ModelShape) -> Parts:
    """The pass for old log-probs: no gradients, and activations of the running layer only."""
    tokens, size = trainer.log_prob_tokens, trainer.compute_bytes
    # The widest moment of a layer: gate, up and their product in the MLP; residual, norm, input and output beside them.
    wide = tokens * size * (3 * student.intermediate + 4 * student.hidden)
    return {
        **resident(trainer, student),
        PARAMS: params_bytes(trainer, student),
        GATHERED: gathered(trainer, student, 1),
        ACTIVATIONS: wide,
        **head(trainer, student, tokens, gradients=False),
    }


def update(trainer: TrainerLayout, student: ModelShape, saved_bytes: float) -> Parts:
    """Forward and backward of one micro-batch, with the accumulated gradients of earlier ones.

    Args:
        saved_bytes: bytes saved per layer and token (`activations.saved_bytes`).
    """
    shard, tokens = shard_bytes(trainer, student), trainer.update_tokens
    # With checkpointing each layer keeps only its input, and one layer at a time is computed again.
    boundaries = tokens * student.hidden * trainer.compute_bytes * student.layers
    whole = tokens * saved_bytes * (1 if trainer.checkpointing else student.layers)
    transient = 2 * tokens * student.intermediate * trainer.compute_bytes
    return {
        CONTEXT: CONTEXT_GIB * GIB,
        PARAMS: params_bytes(trainer, student),
        GRADIENTS: shard,
        OPTIMIZER: 2 * shard,
        # Backward holds weights and gradients in the compute dtype, and the gradients in float32 for reduce-scatter.
        GATHERED: gathered(trainer, student, 2 + 4 / trainer.compute_bytes),
        ACTIVATIONS: whole + transient + (boundaries if trainer.checkpointing else 0.0),
        **head(trainer, student, tokens, gradients=True),
    }


def gathered(trainer: TrainerLayout, student: ModelShape, copies: float) -> float:
    """Bytes of gathered parameters, `copies` times: the root (embeddings, final norm, LM head) and two layers."""
    return copies * trainer.compute_bytes * (student.root + min(IN_FLIGHT, student.layers) * student.layer)


def head(trainer: TrainerLayout, student: ModelShape, tokens: int, gradients: bool) -> Parts:
    """Logits: one chunk of rows on the fused path; else all rows, their float32 copy and its gradient."""
    size = trainer.compute_bytes
    if not trainer.fused:
        return {LOGITS: tokens * student.vocabulary * (size + 4 + (4 if gradients else 0))}
    states = tokens * student.hidden * size * (2 if gradients else 1)
    chunk = min(trainer.head_rows, tokens) * size + 2 * trainer.head_block * 4
    return {HEAD: chunk * student.vocabulary + states}


def rollout(trainer: TrainerLayout, server: RolloutLayout, student: ModelShape, device_gib: float) -> Parts:
    """The phase that samples responses: the server's KV cache takes what its weights leave of its share of a device."""
    weights = server.weight_bytes * student.total / server.tensor_parallel
    cache = max(server.memory_share * device_gib * GIB - weights - SLEEPING_GIB * GIB, 0.0)
    return {**resident(trainer, student), WEIGHTS: weights, CACHE: cache, ROLLOUT: SLEEPING_GIB * GIB}


def asleep(server: RolloutLayout, awake: Parts) -> Parts:
    """The server's parts in the trainer's phases."""
    return {ROLLOUT: SLEEPING_GIB * GIB} if server.sleeps else {key: awake[key] for key in (WEIGHTS, CACHE, ROLLOUT)}


def scoring(teacher: TeacherLayout, model: ModelShape) -> Parts:
    """A device of a scorer's replica in its forward pass."""
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
    """Sum of the parts, bytes."""
    return sum(parts.values())
