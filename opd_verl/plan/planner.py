"""From a composed config to a planned run: the checks, the layouts of trainer and teachers, the models' shapes."""

import torch
from omegaconf import DictConfig
from transformers import PreTrainedConfig

from opd_verl.checks import models
from opd_verl.config.opd import OpdConfig, every_teacher, parse_opd, teacher_key
from opd_verl.plan import layout
from opd_verl.plan.activations import saved_bytes
from opd_verl.plan.devices import DEVICES
from opd_verl.plan.phases import PlannedRun
from opd_verl.plan.shape import shape_of

DTYPES = {2: torch.bfloat16, 4: torch.float32}
"""The dtype that activations are counted in, by bytes of a number. fp16 counts as bf16."""


def plan_run(config: DictConfig, device: str, response_tokens: int | None = None) -> PlannedRun:
    """All numbers behind the planner's tables.

    Raises:
        ConfigError: a setting cannot work, or a model's config cannot be read.
    """
    opd = check_config(config)
    model = config.actor_rollout_ref.model
    trainer = layout.trainer_layout(config, opd, response_tokens)
    student = models.load_config(models.STUDENT, model.path, model.trust_remote_code)
    configs = {model.path: student} | teacher_configs(opd)
    shapes = {path: shape_of(model_config) for path, model_config in configs.items()}
    teachers = layout.teacher_layouts(config, opd)
    return PlannedRun(
        trainer=trainer,
        server=layout.rollout_layout(config),
        student=shapes[model.path],
        saved_bytes=saved_bytes(student, DTYPES[trainer.compute_bytes]),
        device=DEVICES[device],
        teachers={name: (teacher, shapes[teacher.path]) for name, teacher in teachers.items()},
    )


def check_config(config: DictConfig) -> OpdConfig | None:
    """Runs the checks that need no data and no tokenizers. Returns the `opd:` section; None without such a section.

    Raises:
        ConfigError: a setting cannot work.
    """
    from opd_verl.checks import off_policy
    from opd_verl.checks import recipe as settings
    from opd_verl.checks.preflight import preflight

    if "opd" not in config:
        settings.check_mini_batch(config)
        settings.check_token_budget(config)
        return None
    preflight(config, skip=(settings.check_cluster, settings.check_data, *off_policy.CHECKS, *models.CHECKS))
    return parse_opd(config)


def teacher_configs(opd: OpdConfig | None) -> dict[str, PreTrainedConfig]:
    """The config of every teacher's model, by its path; empty without an `opd:` section."""
    teachers = every_teacher(opd) if opd else {}
    return {
        teacher.path: models.load_config(f"{teacher_key(name)}.path", teacher.path, teacher.trust_remote_code)
        for name, teacher in teachers.items()
    }
