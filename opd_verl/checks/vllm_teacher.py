"""Checks of a teacher behind an inference server (`teacher=vllm`): nothing may read what the server cannot give."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from opd_verl.checks.several_teachers import READ_TEACHER_ENTROPY
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, every_teacher, teacher_key
from opd_verl.config.sections import Engine, TeacherConfig
from opd_verl.objectives.names import Placement
from opd_verl.teacher.needs import needs_hidden, student_topk

REMEDY = "teacher=scorer"
INFERENCE = "distillation.teacher_models.teacher_model.inference"


def served(opd: OpdConfig) -> Iterator[tuple[str, TeacherConfig]]:
    """The teachers behind an inference server, by the key of their section."""
    for name, teacher in every_teacher(opd).items():
        if teacher.engine is Engine.vllm:
            yield teacher_key(name), teacher


def check_server(config: DictConfig, opd: OpdConfig) -> None:
    """The server can honour every setting of its teacher.

    vLLM scores prompts at temperature 1, verl's manager passes on only the model's path, and a server keeps its
    weights.
    """
    for key, teacher in served(opd):
        if teacher.temperature != 1.0:
            problem = "vLLM's prompt_logprobs are always at temperature 1"
            raise ConfigError(
                f"{key}.temperature",
                teacher.temperature,
                problem,
                f"{REMEDY}, or actor_rollout_ref.rollout.temperature=1",
            )
        if teacher.trust_remote_code:
            problem = "verl's teacher servers do not pass it on"
            raise ConfigError(f"{key}.trust_remote_code", True, problem, REMEDY)
        if teacher.sync_every:
            problem = "an inference server keeps its weights"
            raise ConfigError(f"{key}.sync_every", teacher.sync_every, problem, REMEDY)
        for name in ("data_parallel_size", "pipeline_model_parallel_size"):
            size = OmegaConf.select(config, f"{INFERENCE}.{name}") or 1
            if size != 1:
                problem = f"a replica has {key}.shards devices, all tensor-parallel"
                raise ConfigError(f"{INFERENCE}.{name}", size, problem, f"{INFERENCE}.{name}=1, or {key}.shards")


def check_server_answers(config: DictConfig, opd: OpdConfig) -> None:
    """The objective and the masks may read only log q of the sampled token and of the teacher's top-k."""
    if next(served(opd), None) is None:
        return
    if student_topk(opd) or needs_hidden(opd):
        problem = "a vLLM server cannot be asked for log-probs at the student's ids, nor for hidden states"
        remedy = f"{REMEDY}, or opd.objective.support=teacher_topk"
        raise ConfigError("opd.objective.support", opd.objective.support.value, problem, remedy)
    if opd.forward_kl.placement is Placement.gated:
        problem = "the gate reads the teacher's entropy, which a vLLM server does not give"
        raise ConfigError("opd.forward_kl.placement", "gated", problem, f"{REMEDY}, or opd.forward_kl.placement=full")
    for mask in set(opd.tokens.masks) & set(READ_TEACHER_ENTROPY):
        problem = "it reads the teacher's entropy, which a vLLM server does not give"
        raise ConfigError("opd.tokens.masks", mask, problem, f"{REMEDY}, or opd.tokens.masks=[top_student_entropy]")


CHECKS = (check_server, check_server_answers)
