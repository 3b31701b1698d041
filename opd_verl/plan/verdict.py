"""Whether a planned run fits its devices, and if not, which key to change."""

from collections.abc import Mapping
from dataclasses import dataclass

from opd_verl.config.opd import teacher_key
from opd_verl.plan import memory
from opd_verl.plan.devices import GIB
from opd_verl.plan.memory import Parts
from opd_verl.plan.phases import PlannedRun
from opd_verl.plan.seconds import concurrent

USABLE = 0.95
"""Usable share of a device's memory; the allocator's fragmentation takes the rest."""
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Misfit:
    """One phase that does not fit a device, and a remedy."""

    phase: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.what}\n  -> {self.remedy}"


def misfits(run: PlannedRun, by_phase: Mapping[str, Parts]) -> list[Misfit]:
    """All phases that need more than a device has, and a KV cache without room for one sequence."""
    room = USABLE * run.device.memory_gib * GIB
    over = [
        Misfit(phase, f"needs {memory.total(parts) / GIB:.1f} of {room / GIB:.1f} GiB", remedy(run, phase, parts))
        for phase, parts in by_phase.items()
        if memory.total(parts) > room
    ]
    cache = by_phase["rollout"][memory.CACHE]
    if concurrent(run.trainer, run.server, run.student, cache) < 1:
        what = f"the KV cache of {cache / GIB:.1f} GiB has no room for one sequence of {run.trainer.longest} tokens"
        more = (
            f"{ROLLOUT}.gpu_memory_utilization (now {run.server.memory_share}) or {ROLLOUT}.tensor_model_parallel_size"
        )
        over.append(Misfit("rollout", what, f"raise {more}"))
    return over


def remedy(run: PlannedRun, phase: str, parts: Parts) -> str:
    """The setting that makes the largest changeable part smaller."""
    if phase.startswith("teacher"):
        return teacher_remedy(run, phase.removeprefix("teacher").strip(), parts)
    if phase == "rollout":
        return rollout_remedy(run)
    states = sum(parts.get(name, 0.0) for name in (memory.PARAMS, memory.GRADIENTS, memory.OPTIMIZER))
    logits, activations = parts.get(memory.LOGITS, 0.0), parts[memory.ACTIVATIONS] + parts.get(memory.HEAD, 0.0)
    if states > max(logits, activations):
        spread = "trainer.n_gpus_per_node" if run.trainer.nnodes == 1 else f"{ACTOR}.fsdp_config.fsdp_size"
        return f"more devices to shard the training state over: raise {spread} (now {run.trainer.shards} share it)"
    if run.trainer.micro_tokens > run.trainer.longest:
        return f"{ACTOR}.ppo_max_token_len_per_gpu={max(run.trainer.micro_tokens // 2, run.trainer.longest)}"
    if not run.trainer.checkpointing:
        return "actor_rollout_ref.model.enable_gradient_checkpointing=true"
    return f"shorter responses (data.max_response_length), or {ACTOR}.fsdp_config.ulysses_sequence_parallel_size"


def rollout_remedy(run: PlannedRun) -> str:
    """A smaller share for the server, or a smaller trainer beside it."""
    own = memory.total(memory.resident(run.trainer, run.student)) / GIB
    share = int(100 * (USABLE - own / run.device.memory_gib)) / 100
    needed = run.server.weight_bytes * run.student.total / run.server.tensor_parallel / GIB
    if share * run.device.memory_gib > 1.2 * needed + 2:
        return f"{ROLLOUT}.gpu_memory_utilization={share}"
    if not run.trainer.offload_optimizer:
        fsdp = f"{ACTOR}.fsdp_config"
        return f"{fsdp}.param_offload=true {fsdp}.optimizer_offload=true"
    return f"raise {ROLLOUT}.tensor_model_parallel_size"


def teacher_remedy(run: PlannedRun, name: str, parts: Parts) -> str:
    """More shards where weights are the largest part; else a smaller batch or fewer kept states."""
    key, (teacher, _) = teacher_key(name), run.teachers[name]
    if parts[memory.TEACHER] > 0.5 * memory.total(parts):
        if teacher.colocated:
            return f"{key}.colocate=false and devices of its own ({key}.n_gpus_per_node, {key}.shards)"
        return f"{key}.shards={2 * teacher.shards}"
    if parts.get(memory.STATES, 0.0) > parts.get(memory.ACTIVATIONS, 0.0):
        return f"{key}.max_state_gib={teacher.state_gib / 2:g}"
    return f"{key}.max_tokens_per_batch={teacher.batch_tokens // 2}"
