"""The part of the job's config that nodes can fail to meet."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from opd_verl.checks.accepted import parameter_count
from opd_verl.checks.models import STUDENT
from opd_verl.config.opd import OpdConfig, every_teacher, teacher_key
from opd_verl.config.overrides import strings
from opd_verl.config.sections import TeacherConfig
from opd_verl.nodes.records import Checklist
from opd_verl.tracking.offline import server_host, why_offline
from opd_verl.utils.hub import cached_folder

BYTES = {"model": 4, "optimizer": 8, "hf_model": 4}
"""Bytes per parameter in a checkpoint, by verl's names: float32 weights, Adam's two moments, a Hugging Face copy."""


@dataclass(frozen=True)
class Needs:
    """The job's devices, models, files and settings."""

    n_gpus_per_node: int
    """Devices of the trainer on each of its nodes."""
    nnodes: int
    """Nodes of the trainer."""
    device: str
    folder: str
    """The folder of the checkpoints, trainer.default_local_dir."""
    teachers: Mapping[str, TeacherConfig] = field(default_factory=dict)
    """The teachers with devices of their own, by name."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folder or hub name of each model, by its key in the config."""
    files: tuple[str, ...] = ()
    """Paths of data files."""
    saves: bool = False
    """Whether the job writes checkpoints."""
    syncs: bool = False
    """Whether the teacher reads the student's weights from the folder of the checkpoints."""
    checkpoint_bytes: int | None = None
    """Size of one checkpoint; None where the job writes no checkpoint or the student's size is unknown."""
    wandb: bool = False
    """Whether wandb logs in, from the node of the trainer's process (any node)."""
    memory_share: float = 0.0
    """Share of a device's memory that vLLM wants to find free."""
    ray_init: Mapping[str, object] = field(default_factory=dict)
    """Arguments of `ray.init` without the runtime environment."""
    env: frozenset[str] = frozenset()
    """Names of the variables that the job's runtime environment sets. Values may be secrets and are not kept."""

    def checklist(self) -> Checklist:
        """The questions to every machine."""
        return Checklist(self.folder, self.models, self.files, server_host(os.environ))


def read_needs(config: DictConfig, opd: OpdConfig | None) -> Needs:
    """The needs of a composed config; `opd` is its parsed section, if it has one."""
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    teachers = every_teacher(opd) if opd else {}
    models = {STUDENT: config.actor_rollout_ref.model.path}
    models |= {f"{teacher_key(name)}.path": teacher.path for name, teacher in teachers.items()}
    ray_init = cast(dict[str, object], OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True))
    return Needs(
        n_gpus_per_node=trainer.n_gpus_per_node,
        nnodes=trainer.nnodes,
        device=trainer.device,
        folder=trainer.default_local_dir,
        teachers={name: teacher for name, teacher in teachers.items() if not teacher.colocate},
        models={key: path for key, path in models.items() if path and "://" not in path},
        files=data_files(config),
        saves=trainer.save_freq > 0,
        syncs=opd is not None and opd.teacher.sync_every > 0,
        checkpoint_bytes=checkpoint_bytes(config) if trainer.save_freq > 0 else None,
        wandb="wandb" in trainer.logger and wandb_online(),
        memory_share=rollout.gpu_memory_utilization,
        ray_init={key: value for key, value in ray_init.items() if key != "runtime_env" and value is not None},
        env=frozenset(OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or ()),
    )


def data_files(config: DictConfig) -> tuple[str, ...]:
    """The files of training and validation data, without URLs."""
    files = [*strings(config.data.train_files), *strings(config.data.val_files)]
    return tuple(dict.fromkeys(file for file in files if "://" not in file))


def checkpoint_bytes(config: DictConfig) -> int | None:
    """Size of one checkpoint, from the headers of the student's weights where they lie on this machine."""
    path = config.actor_rollout_ref.model.path
    folder = path if Path(path).is_dir() else cached_folder(path)
    count = parameter_count(folder) if folder else None
    contents = config.actor_rollout_ref.actor.checkpoint.save_contents
    return None if count is None else count * sum(BYTES.get(part, 0) for part in contents)


def wandb_online() -> bool:
    """Whether wandb would log in, as `opd_verl.tracking` decides it for the job."""
    mode = os.environ.get("WANDB_MODE")
    return mode == "online" if mode else why_offline(os.environ) is None
