"""Every phase of a step, and every teacher, as parts of one device's memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from opd_verl.plan import memory
from opd_verl.plan.devices import GIB, Device
from opd_verl.plan.layout import RolloutLayout, TeacherLayout, TrainerLayout
from opd_verl.plan.memory import Parts
from opd_verl.plan.shape import ModelShape


@dataclass(frozen=True)
class PlannedRun:
    """A run as the planner sees it: layouts, shapes of models, and the device."""

    trainer: TrainerLayout
    server: RolloutLayout
    student: ModelShape
    saved_bytes: float
    """`activations.saved_bytes` of the student."""
    device: Device
    teachers: Mapping[str, tuple[TeacherLayout, ModelShape]] = field(default_factory=dict)


def phases(run: PlannedRun) -> dict[str, Parts]:
    """Bytes of one device by phase: three phases of the trainer, and one of each teacher."""
    # The rollout servers share the trainer's devices: memory of a sleeping server counts in the trainer's phases too.
    awake = memory.rollout(run.trainer, run.server, run.student, run.device.memory_gib)
    beside = memory.asleep(run.server, awake)
    by_phase: dict[str, Parts] = {
        "rollout": awake,
        "log-probs": {**memory.log_probs(run.trainer, run.student), **beside},
        "update": {**memory.update(run.trainer, run.student, run.saved_bytes), **beside},
    }
    for name, (teacher, model) in run.teachers.items():
        label = f"teacher {name}".strip()
        if teacher.served:
            by_phase[label] = served(teacher, model, run.device)
        elif teacher.colocated:
            by_phase[label] = joined(memory.scoring(teacher, model), memory.resident(run.trainer, run.student), beside)
        else:
            by_phase[label] = memory.scoring(teacher, model)
    return by_phase


def served(teacher: TeacherLayout, model: ModelShape, device: Device) -> Parts:
    """A teacher behind vLLM: its weights, and a KV cache in the rest of vLLM's share (0.5, verl's default)."""
    weights = teacher.weight_bytes * model.total / teacher.shards
    rest = max(0.5 * device.memory_gib * GIB - weights - memory.SLEEPING_GIB * GIB, 0.0)
    return {memory.TEACHER: weights, memory.CACHE: rest, memory.ROLLOUT: memory.SLEEPING_GIB * GIB}


def joined(*several: Parts) -> Parts:
    """The sum of several devices' parts, part by part."""
    names = {name: None for parts in several for name in parts}
    return {name: sum(parts.get(name, 0.0) for parts in several) for name in names}


def host_bytes(run: PlannedRun) -> float:
    """Host memory that offloading and colocated teachers take on one node of the trainer."""
    trainer, ranks = run.trainer, run.trainer.devices_per_node
    own = memory.shard_bytes(trainer, run.student) * (trainer.offload_params + 2 * trainer.offload_optimizer)
    # Each device has a whole replica of a colocated teacher, and so a copy of its weights in host memory.
    teachers = sum(teacher.weight_bytes * model.total for teacher, model in run.teachers.values() if teacher.colocated)
    return ranks * (own + teachers)
