"""The plan as tables and lines: memory by phase, the step's time by part, bytes over the wire."""

from collections.abc import Mapping

from opd_verl.plan import memory
from opd_verl.plan.devices import GIB
from opd_verl.plan.memory import Parts
from opd_verl.plan.phases import PlannedRun, host_bytes
from opd_verl.plan.seconds import concurrent, teacher_seconds
from opd_verl.plan.traffic import fsdp_bytes, replica_bytes, teacher_traffic
from opd_verl.utils.markdown import markdown_table

PART_ORDER = (
    memory.CONTEXT,
    memory.PARAMS,
    memory.GRADIENTS,
    memory.OPTIMIZER,
    memory.GATHERED,
    memory.ACTIVATIONS,
    memory.HEAD,
    memory.LOGITS,
    memory.WEIGHTS,
    memory.CACHE,
    memory.ROLLOUT,
    memory.TEACHER,
    memory.STATES,
)


def memory_table(by_phase: Mapping[str, Parts], room_gib: float) -> str:
    """GiB of one device: a line per part, a column per phase."""
    names = [name for name in PART_ORDER if any(parts.get(name) for parts in by_phase.values())]
    lines = [[name, *(gib(parts.get(name, 0.0)) for parts in by_phase.values())] for name in names]
    sums = [memory.total(parts) for parts in by_phase.values()]
    lines.append(["**in all**", *(f"**{gib(size)}**" for size in sums)])
    lines.append([f"of {room_gib:.1f}", *(f"{size / GIB / room_gib:.0%}" for size in sums)])
    return markdown_table(["GiB per device", *by_phase], lines)


def gib(size: float) -> str:
    """Bytes as GiB with one decimal; an empty text for 0."""
    return f"{size / GIB:.1f}" if size else ""


def layout_lines(run: PlannedRun) -> list[str]:
    """The devices of trainer and teachers, and the size of a step."""
    trainer, server = run.trainer, run.server
    copies = trainer.devices // trainer.shards
    lines = [
        f"trainer: {trainer.nnodes} x {trainer.devices_per_node} devices, {run.student.total / 1e9:.2f}B parameters "
        f"over {trainer.shards}{f', {copies} copies' if copies > 1 else ''}; {server.engines} rollout servers",
        f"a step: {trainer.rollouts} rollouts of {trainer.prompt_tokens} + {trainer.response_tokens} tokens, "
        f"{trainer.updates} updates",
    ]
    for name, (teacher, model) in run.teachers.items():
        where = "on the trainer's devices" if teacher.colocated else f"on {teacher.devices} devices of its own"
        lines.append(
            f"teacher {name}".strip() + f": {model.total / 1e9:.2f}B parameters, {teacher.replicas} replicas of "
            f"{teacher.shards} {where}"
        )
    return lines


def time_table(spent: Mapping[str, float]) -> str:
    """Seconds and shares of the parts of a step (`step_seconds`)."""
    whole = sum(spent.values())
    lines = [[name, f"{value:.1f}", f"{value / whole:.0%}"] for name, value in spent.items()]
    return markdown_table(["part of a step", "s", "share"], [*lines, ["**step**", f"**{whole:.1f}**", ""]])


def teacher_lines(run: PlannedRun, step: float) -> list[str]:
    """Each teacher's busy time in a step of `step` seconds, and the bytes to and from it."""
    lines = []
    for name, (teacher, model) in run.teachers.items():
        busy, traffic = (
            teacher_seconds(run.trainer, teacher, model, run.device),
            teacher_traffic(run.trainer, teacher, model),
        )
        per_token = traffic.answered / (run.trainer.rollouts * run.trainer.response_tokens)
        lines.append(
            f"teacher {name}".strip() + f": busy {busy:.1f} s of a step ({min(busy / step, 1.0):.0%}); "
            f"per step {traffic.asked / 1e6:.1f} MB to it, {traffic.answered / 1e6:.1f} MB back "
            f"({per_token:.1f} bytes per token)"
        )
    return lines


def traffic_line(run: PlannedRun) -> str:
    """Bytes of FSDP's collectives, and host memory."""
    trainer, student = run.trainer, run.student
    between, host = replica_bytes(trainer, student), host_bytes(run)
    copies = f", {between / 1e9:.1f} GB between copies" if between else ""
    return f"FSDP: {fsdp_bytes(trainer, student) / 1e9:.1f} GB per device and step within a copy{copies}" + (
        f"; host memory: {host / GIB:.0f} GiB per node of the trainer" if host else ""
    )


def cache_line(run: PlannedRun, cache_bytes: float) -> str:
    """The number of rollouts that a server holds at a time."""
    rows = -(-run.trainer.rollouts // run.server.engines)
    room = concurrent(run.trainer, run.server, run.student, cache_bytes)
    return f"a rollout server gets {rows} rollouts of a step, its KV cache holds {room} of full length at a time"
