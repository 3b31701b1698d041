"""verl's agent loop with one more line: a response goes to the teacher the moment its trajectory ends."""

from typing import Any, ClassVar

import torch
from verl.experimental.agent_loop import AgentLoopOutput

from opd_verl.config.opd import import_plugins, parse_opd, routed_by
from opd_verl.contexts import CONTEXT_HOOKS, chat_template, teacher_prompt
from opd_verl.schema import DATA_RESPONSE, OFF_POLICY, ROLLOUT_COLUMNS, TEACHER_PROMPTS
from opd_verl.seeded_loop import SeededAgentLoopManager, SeededAgentLoopWorker
from opd_verl.teacher.client.start import connect_teachers
from opd_verl.teacher.score import ScoreRequest
from opd_verl.training.rollout.off_policy import choose, draw


class OpdAgentLoopWorker(SeededAgentLoopWorker):
    """Submits each training rollout to the teacher before its task reward is computed; never waits for the answer."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        opd = parse_opd(config)
        self.seed_rollouts = opd.seed_rollouts or self.rollout_config.full_determinism
        self.context, self.off_policy = opd.context, opd.off_policy
        if self.context.name is not None:
            import_plugins(opd)
        self.route_field = routed_by(opd)
        self.teacher = connect_teachers(opd)

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput:
        sample = {name: value for name, value in kwargs.items() if name not in ROLLOUT_COLUMNS}
        if self.off_policy.share and not trajectory["validate"]:
            sample |= self.from_data(kwargs)
        return await super()._run_agent_loop(sampling_params, trajectory, **sample)

    def from_data(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What turns a rollout into a response of the data set, for the share of rollouts that are; and which are."""
        rollout, seed = f"{sample['uid']}/{sample['session_id']}", self.rollout_config.seed
        if draw(seed, rollout) >= self.off_policy.share:
            return {OFF_POLICY: torch.zeros(1)}
        response = choose(sample, self.off_policy.field, seed, rollout)
        return {OFF_POLICY: torch.ones(1), "agent_name": DATA_RESPONSE, DATA_RESPONSE: response}

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        kwargs.pop(DATA_RESPONSE, None)
        if not validate:
            outputs = output if isinstance(output, list) else [output]
            if self.context.name is not None:
                kwargs[TEACHER_PROMPTS] = self.teacher_prompt(outputs, kwargs)
            self.submit(outputs, kwargs)
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    def teacher_prompt(self, outputs: list[AgentLoopOutput], sample: dict[str, Any]) -> torch.Tensor:
        """Token ids int64 [P'] of the prompt with its privileged context. ValueError: `contexts.teacher_prompt`."""
        if len(outputs) != 1:
            raise ValueError(f"opd.context.name={self.context.name} needs agent loops with one output")
        context = CONTEXT_HOOKS[str(self.context.name)](sample)
        render = chat_template(self.tokenizer, self.config.data.get("apply_chat_template_kwargs"))
        found = teacher_prompt(
            list(sample["raw_prompt"]), context, render, outputs[0].prompt_ids, self.context.max_tokens
        )
        return torch.tensor(found)

    def submit(self, outputs: list[AgentLoopOutput], sample: dict[str, Any]) -> None:
        """Hands the outputs to their teacher under the keys that verl gives them in TransferQueue."""
        route = "" if self.route_field is None else str(sample[self.route_field])
        for index, output in enumerate(outputs):
            key = f"{sample['uid']}_{sample['session_id']}_{index}"
            prompt_ids: Any = sample.get(TEACHER_PROMPTS, output.prompt_ids)
            request = ScoreRequest(key, prompt_ids, output.response_ids, route)  # type: ignore[arg-type]
            self.teacher.submit(request, int(sample["global_steps"]))


class OpdAgentLoopManager(SeededAgentLoopManager):
    """verl's manager with our worker; named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    worker: ClassVar[type] = OpdAgentLoopWorker
