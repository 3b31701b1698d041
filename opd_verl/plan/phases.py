"""Every phase of a step and every teacher as parts of one device's memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from opd_verl.plan import memory
from opd_verl.plan.devices import GIB, Device
from opd_verl.plan.layout import RolloutLayout, TeacherLayout, TrainerLayout
from opd_verl.plan.memory import Parts
from opd_verl.plan.shape import ModelShape


@dataclass(frozen=True)
class Run:
    """All that the planner counts with."""

    trainer: TrainerLayout
    server: RolloutLayout
    student: ModelShape
    saved_bytes: float
    """`activations.saved_bytes` of the student."""
    device: Device
    teachers: Mapping[str, tuple[TeacherLayout, ModelShape]] = field(default_factory=dict)


def phases(run: Run) -> dict[str, Parts]:
    """Bytes of one device by phase: three of the trainer's, and each teacher's."""
    awake = memory.rollout(run.trainer, run.server, run.student, run.device.memory_gib)
    beside = memory.asleep(run.server, awake)
    found: dict[str, Parts] = {
        "rollout": awake,
        "log-probs": {**memory.log_probs(run.trainer, run.student), **beside},
        "update": {**memory.update(run.trainer, run.student, run.saved_bytes), **beside},
    }
    for name, (teacher, model) in run.teachers.items():
        label = f"teacher {name}".strip()
        if teacher.served:
            found[label] = served(teacher, model, run.device)
        elif teacher.colocated:
            found[label] = joined(memory.scoring(teacher, model), memory.resident(run.trainer, run.student), beside)
        else:
            found[label] = memory.scoring(teacher, model)
    return found


def served(teacher: TeacherLayout, model: ModelShape, device: Device) -> Parts:
    """A teacher behind vLLM: its weights, and the cache that is left of its share (0.5, verl's default)."""
    weights = teacher.weight_bytes * model.total / teacher.shards
    rest = max(0.5 * device.memory_gib * GIB - weights - memory.SLEEPING_GIB * GIB, 0.0)
    return {memory.TEACHER: weights, memory.CACHE: rest, memory.ROLLOUT: memory.SLEEPING_GIB * GIB}


def joined(*several: Parts) -> Parts:
    """The sum, part by part."""
    names = {name: None for parts in several for name in parts}
    return {name: sum(parts.get(name, 0.0) for parts in several) for name in names}


def host_bytes(run: Run) -> float:
    """Host memory of one of the trainer's nodes that offloading and colocated teachers take."""
    trainer, ranks = run.trainer, run.trainer.devices_per_node
    own = memory.shard_bytes(trainer, run.student) * (trainer.offload_params + 2 * trainer.offload_optimizer)
    teachers = sum(one.weight_bytes * model.total for one, model in run.teachers.values() if one.colocated)
    return ranks * (own + teachers)
