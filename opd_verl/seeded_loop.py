"""verl's agent loop with a seed of its own for every rollout, so that a run can be repeated and resumed to the number.

recipe=opd does it on `opd.seed_rollouts=true`. For plain GRPO, whose recipe is verl's unchanged classes:

    python -m verl.trainer.main_ppo recipe=grpo trainer.v1.trainer_mode=seeded \\
        +actor_rollout_ref.rollout.agent.agent_loop_manager_class=opd_verl.seeded_loop.SeededAgentLoopManager ...
"""

import zlib
from typing import Any, ClassVar

import ray
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

VerlWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class SeededAgentLoopWorker(VerlWorker):
    """Names a seed in every request; verl gives all requests the same, which the servers then read in any order."""

    seed_rollouts: bool = True

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput:
        if self.seed_rollouts:
            sampling_params = {**sampling_params, "seed": self.rollout_seed(trajectory, **kwargs)}
        return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    def rollout_seed(self, trajectory: dict[str, Any], uid: str, session_id: int, **kwargs: Any) -> int:
        """A seed of its own for every rollout, equal in every run and resume.

        Training prompts have names that SeededTrainer makes of step and row; validation prompts go by their index.
        """
        prompt = f"val.{trajectory['step']}.{trajectory['sample_index']}" if trajectory["validate"] else uid
        return zlib.crc32(f"{self.rollout_config.seed}/{prompt}/{session_id}".encode())


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker; named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    worker: ClassVar[type] = SeededAgentLoopWorker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(self.worker)
