"""What a run needs of its devices, and whether it fits, from the composed config and the models' configs alone.

    python -m opd_verl.plan recipe=opd cluster=4x8 student=Qwen/Qwen3-1.7B teacher=Qwen/Qwen3-8B device=h100

All other arguments are the job's own Hydra overrides. Reads no weights and touches no device; exits with 1 where the
run does not fit, and says which key to change. Sizes are those of the longest sequences; `response_tokens=` gives the
mean length that times are counted with. Seconds come from data sheets and assumed efficiencies: good for comparisons.
"""

import sys
from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig
from transformers import PretrainedConfig

from opd_verl.checks import models
from opd_verl.config.compose import compose_trainer
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, every_teacher, parse_opd, teacher_key
from opd_verl.config.overrides import hydra_value
from opd_verl.config.sections import Engine
from opd_verl.plan import layout, memory, report
from opd_verl.plan.activations import saved_bytes
from opd_verl.plan.devices import DEVICES
from opd_verl.plan.phases import Run, phases
from opd_verl.plan.seconds import step_seconds
from opd_verl.plan.shape import shape_of
from opd_verl.plan.verdict import problems

MODELS = {"student": models.STUDENT, "teacher": "opd.teacher.path"}
"""Short names of two keys."""
ENGINES = {engine.value for engine in Engine}
"""`teacher=vllm` and `teacher=scorer` are the job's own: what runs the teacher."""
OWN = {"device": "h100", "response_tokens": ""}
"""The planner's own options and what they are where nobody sets them."""
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The planner's own options, and the job's overrides."""
    own, overrides = dict(OWN), []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in OWN:
            own[name] = value
        elif name in MODELS and value not in ENGINES:
            overrides.append(f"{MODELS[name]}={hydra_value(value)}")
        else:
            overrides.append(argument)
    return own, overrides


def checked(own: Mapping[str, str]) -> tuple[str, int | None]:
    """The device's name and the mean response length.

    Raises:
        ConfigError: no such device, or not a positive number.
    """
    device, length = own["device"].lower(), own["response_tokens"]
    if device not in DEVICES:
        raise ConfigError("device", own["device"], f"known are {', '.join(DEVICES)}", "device=h100")
    if length and not (length.isdigit() and int(length)):
        raise ConfigError("response_tokens", length, "must be a positive number", "response_tokens=2000")
    return device, int(length) if length else None


def check_config(config: DictConfig) -> OpdConfig | None:
    """The checks that read neither data nor tokenizers. Returns the `opd:` section; None for a recipe without.

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


def teacher_configs(opd: OpdConfig | None) -> dict[str, PretrainedConfig]:
    """The config of every teacher's model, by its path; none without an `opd:` section."""
    teachers = every_teacher(opd) if opd else {}
    return {
        one.path: models.load_config(f"{teacher_key(name)}.path", one.path, one.trust_remote_code)
        for name, one in teachers.items()
    }


def plan(config: DictConfig, device: str, response_tokens: int | None = None) -> Run:
    """All that the tables are made of.

    Raises:
        ConfigError: a setting cannot work, or a model's config cannot be read.
    """
    opd = check_config(config)
    model = config.actor_rollout_ref.model
    trainer = layout.trainer_layout(config, opd, response_tokens)
    student = models.load_config(models.STUDENT, model.path, model.trust_remote_code)
    shapes = {path: shape_of(one) for path, one in ({model.path: student} | teacher_configs(opd)).items()}
    return Run(
        trainer=trainer,
        server=layout.rollout_layout(config),
        student=shapes[model.path],
        saved_bytes=saved_bytes(student, DTYPES[trainer.compute_bytes]),
        device=DEVICES[device],
        teachers={name: (one, shapes[one.path]) for name, one in layout.teacher_layouts(config, opd).items()},
    )


def main(arguments: Sequence[str]) -> int:
    """Prints the plan; 1 where the run does not fit."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        own, overrides = split(arguments)
        device, length = checked(own)
        run = plan(compose_trainer(overrides), device, length)
    except ConfigError as error:
        raise SystemExit(f"opd_verl: {error}") from None
    found = phases(run)
    cache = found["rollout"][memory.CACHE]
    print(*report.layout_lines(run), "", report.memory_table(found, run.device.memory_gib), "", sep="\n")
    spent = step_seconds(run.trainer, run.server, run.student, run.device, cache, run.teachers)
    print(report.time_table(spent), "", *report.teacher_lines(run, sum(spent.values())), sep="\n")
    print(report.cache_line(run, cache), report.traffic_line(run), "", sep="\n")
    wrong = problems(run, found)
    print(*wrong, sep="\n") if wrong else print(f"fits on {device}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
