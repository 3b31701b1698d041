"""verl's agent loop with one more line: a response goes to the teacher the moment its trajectory ends."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsInt, cast

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from verl.experimental.agent_loop import AgentLoopOutput

from opd_verl.config.opd import import_plugins, parse_opd, routed_by
from opd_verl.contexts import CONTEXT_HOOKS, Message, chat_template, teacher_prompt
from opd_verl.schema import DATA_RESPONSE, OFF_POLICY, ROLLOUT_COLUMNS, TEACHER_PROMPTS
from opd_verl.seeded_loop import SeededAgentLoopManager, SeededAgentLoopWorker
from opd_verl.teacher.client.start import connect_teachers
from opd_verl.teacher.score import ScoreRequest
from opd_verl.training.rollout.data_loop import DataResponseLoop
from opd_verl.training.rollout.off_policy import choose, draw


class OpdAgentLoopWorker(SeededAgentLoopWorker):
    """Submits each training rollout to the teacher before its task reward is computed; never waits for the answer.

    The dictionaries that verl passes along (`kwargs`) hold the data set's columns of one prompt, and `uid`,
    `session_id` and `global_steps`.
    """

    def __init__(self, config: DictConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)
        opd = parse_opd(config)
        self.seed_rollouts = opd.seed_rollouts or self.rollout_config.full_determinism
        self.context, self.off_policy = opd.context, opd.off_policy
        if self.context.name is not None:
            import_plugins(opd)
        self.route_field = routed_by(opd)
        self.teacher = connect_teachers(opd)

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: object
    ) -> AgentLoopOutput:
        # A file of rollouts used as training data has columns that verl would take for the new rollout's own fields.
        sample = {name: value for name, value in kwargs.items() if name not in ROLLOUT_COLUMNS}
        if self.off_policy.share and not trajectory["validate"]:
            sample |= self.from_data(kwargs)
        return await super()._run_agent_loop(sampling_params, trajectory, **sample)

    def from_data(self, sample: Mapping[str, object]) -> dict[str, object]:
        """OFF_POLICY of this rollout. Where it is 1: also the data loop's name, and a response of the data set."""
        rollout, seed = f"{sample['uid']}/{sample['session_id']}", self.rollout_config.seed
        if draw(seed, rollout) >= self.off_policy.share:
            return {OFF_POLICY: torch.zeros(1)}
        response = choose(sample, self.off_policy.field, seed, rollout)
        return {OFF_POLICY: torch.ones(1), "agent_name": DataResponseLoop.name, DATA_RESPONSE: response}

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: object
    ) -> None:
        # verl writes all of `kwargs` to TransferQueue; the chosen response is there already, as `responses`.
        kwargs.pop(DATA_RESPONSE, None)
        if not validate:
            outputs = output if isinstance(output, list) else [output]
            context_prompt = self.context_prompt(outputs, kwargs) if self.context.name is not None else None
            if context_prompt is not None:
                kwargs[TEACHER_PROMPTS] = context_prompt
            self.submit(outputs, kwargs, context_prompt)
        # verl's own part computes the task reward, which may take long: the teacher works meanwhile.
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    def context_prompt(self, outputs: list[AgentLoopOutput], sample: Mapping[str, object]) -> Tensor:
        """Token ids int64 [P'] of the prompt with its privileged context. Raises ValueError: `teacher_prompt`."""
        if len(outputs) != 1:
            raise ValueError(f"opd.context.name={self.context.name} needs agent loops with one output")
        context = CONTEXT_HOOKS[str(self.context.name)](sample)
        render = chat_template(self.tokenizer, self.config.data.get("apply_chat_template_kwargs"))
        messages = list(cast(Sequence[Message], sample["raw_prompt"]))
        return torch.tensor(teacher_prompt(messages, context, render, outputs[0].prompt_ids, self.context.max_tokens))

    def submit(
        self, outputs: list[AgentLoopOutput], sample: Mapping[str, object], context_prompt: Tensor | None = None
    ) -> None:
        """Hands the outputs to their teacher under the keys that verl gives them in TransferQueue."""
        route = "" if self.route_field is None else str(sample[self.route_field])
        step = int(cast(SupportsInt, sample["global_steps"]))
        for index, output in enumerate(outputs):
            key = f"{sample['uid']}_{sample['session_id']}_{index}"
            prompt_ids = np.asarray(output.prompt_ids if context_prompt is None else context_prompt)
            self.teacher.submit(ScoreRequest(key, prompt_ids, np.asarray(output.response_ids), route), step)


class OpdAgentLoopManager(SeededAgentLoopManager):
    """verl's manager with our worker; named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    worker: ClassVar[type] = OpdAgentLoopWorker
