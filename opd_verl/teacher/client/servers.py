"""A teacher behind verl's own inference servers (`teacher=vllm`), started by verl's teacher manager.

The servers are set up by verl's section `distillation.teacher_models.teacher_model.inference`. This module overrides
the keys that follow from the teacher's section and from the objective.
"""

from typing import cast

from omegaconf import DictConfig, OmegaConf
from verl.experimental.teacher_loop.teacher_model import TeacherModelManager
from verl.single_controller.ray import RayResourcePool
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import DistillationConfig, DistillationTeacherModelConfig

from opd_verl.config.sections import TeacherConfig


def server_config(inference: DictConfig, teacher: TeacherConfig, prompt: int, response: int, topk: int) -> DictConfig:
    """verl's inference section for a teacher that reads `prompt` + `response` tokens and answers with `topk` ids."""
    follows = {
        "name": "vllm",
        "dtype": teacher.dtype,
        "tensor_model_parallel_size": teacher.shards,
        "temperature": 1.0,
        "prompt_length": prompt + response,
        "response_length": 1,  # vLLM must generate one token
        "max_model_len": prompt + response + 1,
        # vLLM refuses a request for more top log-probs than `max_logprobs`, by default 20.
        "engine_kwargs": {"vllm": {"max_logprobs": topk} if topk else {}},
    }
    # Through a plain container: verl's section is in struct mode, which refuses new keys under engine_kwargs.
    free = OmegaConf.create(OmegaConf.to_container(inference, resolve=True))
    return cast(DictConfig, OmegaConf.merge(free, follows))


def start_servers(
    config: DictConfig,
    name: str,
    teacher: TeacherConfig,
    replicas: int,
    resource_pool: RayResourcePool,
    longest: tuple[int, int],
    topk: int,
) -> TeacherModelManager:
    """Servers on the whole pool, `shards` devices each; returns when they serve. The manager keeps them alive.

    longest: prompt tokens (privileged context included) and response tokens.
    """
    inference = config.distillation.teacher_models.teacher_model.inference
    model = DistillationTeacherModelConfig(
        key=name,
        model_path=teacher.path,
        inference=omega_conf_to_dataclass(server_config(inference, teacher, *longest, topk)),
        num_replicas=replicas,
    )
    return TeacherModelManager(DistillationConfig(n_gpus_per_node=teacher.n_gpus_per_node), model, resource_pool)
