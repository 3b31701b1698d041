"""The agent loop of a rollout whose response is the data set's: the prompt as ever, nothing sampled."""

from typing import Any

from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import register

from opd_verl.schema import DATA_RESPONSE
from opd_verl.training.rollout.off_policy import token_ids


@register(DATA_RESPONSE)
class DataResponseLoop(AgentLoopBase):
    """Single turn; gives the fields that verl's own loop gives, so that rows of both fit one batch."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """The prompt, and the response that the worker chose."""
        prompt_ids = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        response = token_ids(kwargs[DATA_RESPONSE], self.tokenizer, self.rollout_config.response_length)
        step = int(kwargs["global_steps"])
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response,
            response_mask=[1] * len(response),
            response_logprobs=None,
            routed_experts=None,
            multi_modal_data={},
            mm_processor_kwargs={},
            mm_processor_output=None,
            num_turns=2,
            metrics={"generate_sequences": 0.0, "num_preempted": -1},  # type: ignore[arg-type]
            extra_fields={
                "turn_scores": [],
                "tool_rewards": [],
                "min_global_steps": step - 1,
                "max_global_steps": step - 1,
            },
        )
