"""An agent-loop worker without Ray, and a pool that notes what it is given."""

from types import SimpleNamespace
from typing import Any

import pytest

from opd_verl import seeded_loop
from opd_verl.config.sections import ContextConfig, OffPolicyConfig
from opd_verl.training.rollout.agent_loop import OpdAgentLoopWorker


class RecordingPool:
    """Stands for the pool's handle: notes what is submitted, in the order of all events."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def submit(self, request: Any, step: int) -> None:
        self.events.append((request.key, request.prompt_ids.tolist(), request.response_ids.tolist(), step))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker without Ray; verl's own postprocessing only notes that it was called."""
    made: Any = object.__new__(OpdAgentLoopWorker)
    made.events = []
    made.teacher = RecordingPool(made.events)
    made.context, made.off_policy, made.route_field = ContextConfig(), OffPolicyConfig(), None
    made.seed_rollouts, made.rollout_config = True, SimpleNamespace(seed=7)

    async def postprocess(self: Any, output: Any, validate: bool, **kwargs: Any) -> None:
        self.events.append("verl: reward, TransferQueue")
        self.stored = kwargs

    async def run(
        self: Any, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return sampling_params

    monkeypatch.setattr(seeded_loop.VerlWorker, "_agent_loop_postprocess", postprocess)
    monkeypatch.setattr(seeded_loop.VerlWorker, "_run_agent_loop", run)
    return made


def output(prompt: list[int], response: list[int]) -> Any:
    return SimpleNamespace(prompt_ids=prompt, response_ids=response)
