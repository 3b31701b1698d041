"""Starts the teacher actors in the resource pool that verl made for them."""

from typing import Any

from verl.utils.device import get_device_name

from opd_verl.config import OpdConfig, TeacherConfig
from opd_verl.teacher.actor import TeacherSettings
from opd_verl.teacher.needs import keeps_hidden, teacher_topk
from opd_verl.teacher.pool import TeacherPool

TEACHER_NAME = "opd_teacher"
TEACHER_POOL = "opd_teacher_pool"


def replica_count(opd: OpdConfig) -> int:
    """One replica per device of the teacher's pool."""
    return opd.teacher.nnodes * opd.teacher.n_gpus_per_node


def teacher_settings(teacher: TeacherConfig, vocab_limit: int, keep_hidden: bool, topk: int) -> TeacherSettings:
    """What one replica needs to know, from the `opd.teacher` section and what the objective asks for."""
    return TeacherSettings(
        vocab_limit=vocab_limit,
        temperature=teacher.temperature,
        dtype=teacher.dtype,
        device=get_device_name(),
        max_tokens_per_batch=teacher.max_tokens_per_batch,
        chunk_rows=teacher.chunk_rows,
        topk=topk,
        keep_hidden=keep_hidden,
        max_state_bytes=int(teacher.max_state_gib * 2**30),
        attn_implementation=teacher.attn_implementation,
        trust_remote_code=teacher.trust_remote_code,
    )


def start_teacher(opd: OpdConfig, resource_pool: Any, vocab_limit: int) -> TeacherPool:
    """One actor per bundle of the pool's placement groups; returns when every replica has loaded its model."""
    groups = resource_pool.get_placement_groups(device_name=get_device_name())
    bundles = [(group, index) for group in groups for index in range(group.bundle_count)]
    return TeacherPool.start(
        opd.teacher.path,
        teacher_settings(opd.teacher, vocab_limit, keeps_hidden(opd), teacher_topk(opd)),
        replica_count(opd),
        name_prefix=TEACHER_NAME,
        placement_groups=bundles,
        num_gpus=1,
        timeout_s=opd.teacher.timeout_s,
        load_timeout_s=opd.teacher.load_timeout_s,
    )
