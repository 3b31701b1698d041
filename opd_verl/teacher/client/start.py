"""Starts the teacher actors in the resource pools that verl made for them, and finds them again by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from omegaconf import DictConfig
from verl.single_controller.ray import RayResourcePool
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
"""Names of resource pools. `global_pool` is verl's name for the trainer's pool."""


def actor_prefix(opd: OpdConfig, name: str) -> str:
    """The name of a teacher's actors without their number; `name` is a key of `every_teacher`."""
    return TEACHER_NAME if len(opd.teachers) < 2 else f"{TEACHER_NAME}_{name}"


def pool_name(name: str, colocate: bool = False) -> str:
    """The resource pool of a teacher of `every_teacher`: a colocated teacher uses the trainer's pool."""
    own = f"{TEACHER_POOL}_{name}" if name else TEACHER_POOL
    return TRAINER_POOL if colocate else own


def replica_count(teacher: TeacherConfig) -> int:
    """One replica for each `shards` devices of the teacher's pool."""
    return teacher.nnodes * teacher.n_gpus_per_node // teacher.shards


def replica_settings(
    opd: OpdConfig, teacher: TeacherConfig, vocab_limit: int, weights_pointer: str | None = None
) -> TeacherSettings:
    """A replica's settings: the teacher's section, and the score fields that objective and diagnostics read."""
    looks = looks_at_all(opd)
    return TeacherSettings(
        teacher=teacher,
        vocab_limit=vocab_limit,
        device=get_device_name(),
        weights_pointer=weights_pointer,
        topk=teacher_topk(opd),
        keep_hidden=keeps_hidden(opd),
        look_every=opd.diagnostics.every if looks else 0,
        look_topk=opd.diagnostics.k if looks else 0,
    )


def start_teacher(
    config: DictConfig, opd: OpdConfig, name: str, resource_pool: RayResourcePool, settings: TeacherSettings
) -> TeacherPool:
    """The replicas of one teacher; returns when all have loaded the model.

    Each bundle of the pool's placement groups gets one shard; with `teacher=vllm`, verl's inference servers lie on the
    bundles, and each server gets a replica that asks it.
    """
    teacher, prefix = settings.teacher, actor_prefix(opd, name)
    if teacher.engine is Engine.vllm:
        sizes = longest(config, opd), teacher_topk(opd)
        manager = start_servers(config, name, teacher, replica_count(teacher), resource_pool, *sizes)
        # The server is spread over `shards` devices; the replica in front of it is one process without a model.
        whole = replace(settings, teacher=replace(teacher, shards=1), keep_hidden=False)
        pool = TeacherPool.start(whole, len(manager.server_handles), name_prefix=prefix, servers=manager.server_handles)
        pool.keeps = manager
        return pool
    groups = resource_pool.get_placement_groups(device_name=get_device_name())
    bundles = [(group, index) for group in groups for index in range(group.bundle_count)]
    # verl gives each of its own processes on a device the same fraction; a colocated teacher is one more process.
    share = 1 / resource_pool.max_colocate_count if teacher.colocate else 1
    return TeacherPool.start(
        settings, replica_count(teacher), name_prefix=prefix, placement_groups=bundles, num_gpus=share
    )


def longest(config: DictConfig, opd: OpdConfig) -> tuple[int, int]:
    """The most prompt tokens that a teacher reads, privileged context included, and the most response tokens."""
    return config.data.max_prompt_length + context_tokens(opd), config.data.max_response_length


def start_teachers(
    config: DictConfig,
    opd: OpdConfig,
    resource_pools: Mapping[str, RayResourcePool],
    vocab_limit: int,
    weights_pointer: str | None = None,
) -> Teacher:
    """All teachers, each in the resource pool of its `pool_name`; they load at the same time."""
    starts = {
        name: partial(
            start_teacher,
            config,
            opd,
            name,
            resource_pools[pool_name(name, teacher.colocate)],
            replica_settings(opd, teacher, vocab_limit, weights_pointer),
        )
        for name, teacher in every_teacher(opd).items()
    }
    return together(opd, at_once(starts))


def connect_teachers(opd: OpdConfig) -> Teacher:
    """The running teachers, from any process of the job. Raises Ray's ValueError where a teacher does not run."""
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
