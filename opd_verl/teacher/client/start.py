"""Starts the teacher actors in the resource pools that verl made for them, and finds them again by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from omegaconf import DictConfig
from verl.utils.device import get_device_name

from opd_verl.config.opd import OpdConfig, context_tokens, every_teacher
from opd_verl.config.sections import Combine, Engine, TeacherConfig
from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.client.servers import start_servers
from opd_verl.teacher.client.several import AveragedTeachers, RoutedTeachers, Teacher, at_once
from opd_verl.teacher.needs import keeps_hidden, looks_at_all, teacher_topk
from opd_verl.teacher.settings import TeacherSettings

TEACHER_NAME = "opd_teacher"
TEACHER_POOL, TRAINER_POOL = "opd_teacher_pool", "global_pool"
Settings = Callable[[TeacherConfig], TeacherSettings]


def actor_prefix(opd: OpdConfig, name: str) -> str:
    """How the actors of a teacher of `every_teacher` are called, less their number."""
    return TEACHER_NAME if len(opd.teachers) < 2 else f"{TEACHER_NAME}_{name}"


def pool_name(name: str, colocate: bool = False) -> str:
    """The resource pool of a teacher of `every_teacher`; a colocated one's is the trainer's."""
    own = f"{TEACHER_POOL}_{name}" if name else TEACHER_POOL
    return TRAINER_POOL if colocate else own


def replica_count(teacher: TeacherConfig) -> int:
    """One replica for each `shards` devices of the teacher's pool."""
    return teacher.nnodes * teacher.n_gpus_per_node // teacher.shards


def teacher_settings(
    teacher: TeacherConfig,
    vocab_limit: int,
    keep_hidden: bool,
    topk: int,
    weights_pointer: str | None = None,
    look: tuple[int, int] = (0, 0),
) -> TeacherSettings:
    """What one replica needs to know, from the `opd.teacher` section and what the objective asks for.

    look: every how many steps the diagnostics look closer, and their k.
    """
    return TeacherSettings(
        vocab_limit=vocab_limit,
        temperature=teacher.temperature,
        dtype=teacher.dtype,
        device=get_device_name(),
        colocate=teacher.colocate,
        shards=teacher.shards,
        max_tokens_per_batch=teacher.max_tokens_per_batch,
        chunk_rows=teacher.chunk_rows,
        weights_pointer=weights_pointer,
        topk=topk,
        look_every=look[0],
        look_topk=look[1],
        wire_dtype=teacher.wire_dtype,
        keep_hidden=keep_hidden,
        max_queued=teacher.max_queued,
        early=teacher.early,
        max_state_bytes=int(teacher.max_state_gib * 2**30),
        attn_implementation=teacher.attn_implementation,
        trust_remote_code=teacher.trust_remote_code,
    )


def start_teacher(config: DictConfig, opd: OpdConfig, name: str, resource_pool: Any, settings: Settings) -> TeacherPool:
    """The replicas of one teacher; returns when every one has loaded its model.

    A shard per bundle of the pool's placement groups, or on them verl's inference servers with a replica for each.
    """
    teacher = every_teacher(opd)[name]
    common = {
        "name_prefix": actor_prefix(opd, name),
        "timeout_s": teacher.timeout_s,
        "load_timeout_s": teacher.load_timeout_s,
    }
    if teacher.engine is Engine.vllm:
        sizes = longest(config, opd), teacher_topk(opd)
        manager = start_servers(config, name, teacher, replica_count(teacher), resource_pool, *sizes)
        whole = replace(settings(teacher), shards=1, keep_hidden=False)
        servers = manager.server_handles
        pool = TeacherPool.start(teacher.path, whole, len(servers), servers=servers, **common)
        pool.keeps = manager
        return pool
    groups = resource_pool.get_placement_groups(device_name=get_device_name())
    bundles = [(group, index) for group in groups for index in range(group.bundle_count)]
    share = 1 / resource_pool.max_colocate_count if teacher.colocate else 1
    return TeacherPool.start(
        teacher.path, settings(teacher), replica_count(teacher), placement_groups=bundles, num_gpus=share, **common
    )


def longest(config: DictConfig, opd: OpdConfig) -> tuple[int, int]:
    """The most prompt tokens that a teacher reads, privileged context included, and the most response tokens."""
    return config.data.max_prompt_length + context_tokens(opd), config.data.max_response_length


def start_teachers(
    config: DictConfig,
    opd: OpdConfig,
    resource_pools: Mapping[str, Any],
    vocab_limit: int,
    weights_pointer: str | None = None,
) -> Teacher:
    """All teachers, each in the resource pool of its `pool_name`; they load at the same time."""
    wanted = {"keep_hidden": keeps_hidden(opd), "topk": teacher_topk(opd), "weights_pointer": weights_pointer}
    wanted["look"] = (opd.diagnostics.every, opd.diagnostics.k) if looks_at_all(opd) else (0, 0)
    settings = partial(teacher_settings, vocab_limit=vocab_limit, **wanted)
    starts = {
        name: partial(start_teacher, config, opd, name, resource_pools[pool_name(name, teacher.colocate)], settings)
        for name, teacher in every_teacher(opd).items()
    }
    return together(opd, at_once(starts))


def connect_teachers(opd: OpdConfig) -> Teacher:
    """The running teachers, from any process of the job. Raises Ray's ValueError where one does not run."""
    pools = {
        name: TeacherPool.connect(actor_prefix(opd, name), replica_count(teacher))
        for name, teacher in every_teacher(opd).items()
    }
    return together(opd, pools)


def together(opd: OpdConfig, pools: Mapping[str, TeacherPool]) -> Teacher:
    """The pools of `every_teacher` as one teacher."""
    if not opd.teachers:
        return pools[""]
    if opd.combine is Combine.average:
        return AveragedTeachers(pools, {name: teacher.weight for name, teacher in opd.teachers.items()})
    names = {value: name for name, teacher in opd.teachers.items() for value in teacher.values}
    return RoutedTeachers(pools, names, opd.route_field)
