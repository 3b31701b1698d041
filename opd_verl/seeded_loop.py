"""verl's agent loop with a seed of its own for every rollout, so that a run can be repeated and resumed to the number.

`recipe=opd` uses it with `opd.seed_rollouts=true`. For plain GRPO, whose recipe has verl's unchanged classes:

    python -m verl.trainer.main_ppo recipe=grpo trainer.v1.trainer_mode=seeded \\
        +actor_rollout_ref.rollout.agent.agent_loop_manager_class=opd_verl.seeded_loop.SeededAgentLoopManager ...
"""

import zlib
from typing import TYPE_CHECKING, ClassVar

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase
    from verl.experimental.agent_loop import AgentLoopOutput
    from verl.workers.config import RolloutConfig

    class VerlWorker:
        """The part of verl's worker that is used here, as verl calls it."""

        config: DictConfig
        rollout_config: RolloutConfig
        tokenizer: PreTrainedTokenizerBase

        def __init__(self, config: DictConfig, *args: object, **kwargs: object) -> None: ...

        async def _run_agent_loop(
            self, sampling_params: dict[str, object], trajectory: dict[str, object], **kwargs: object
        ) -> AgentLoopOutput: ...

        async def _agent_loop_postprocess(
            self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: object
        ) -> None: ...

else:
    # verl decorates its worker with ray.remote, and an actor class cannot be subclassed: this is the plain class.
    VerlWorker = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class SeededAgentLoopWorker(VerlWorker):
    """Puts a seed of its own into every sampling request.

    verl's requests share one seed, so a rollout's numbers would depend on the order in which requests reach the server.
    """

    seed_rollouts: bool = True

    async def _run_agent_loop(
        self, sampling_params: dict[str, object], trajectory: dict[str, object], **kwargs: object
    ) -> "AgentLoopOutput":
        if self.seed_rollouts:
            seed = self.rollout_seed(trajectory, kwargs["uid"], kwargs["session_id"])
            sampling_params = {**sampling_params, "seed": seed}
        return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    def rollout_seed(self, trajectory: dict[str, object], uid: object, session_id: object) -> int:
        """The seed of one rollout, equal in every run and after a resume.

        Args:
            trajectory: verl's `step`, `sample_index` and `validate` of the rollout.
            uid: name of the prompt. `SeededTrainer` makes a training prompt's uid from step and row.
            session_id: number of the rollout among the rollouts of its prompt.
        """
        # verl gives validation prompts a random uid in every run; their index stays.
        prompt = f"val.{trajectory['step']}.{trajectory['sample_index']}" if trajectory["validate"] else uid
        return zlib.crc32(f"{self.rollout_config.seed}/{prompt}/{session_id}".encode())


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker; named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    worker: ClassVar[type] = SeededAgentLoopWorker

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(self.worker)
