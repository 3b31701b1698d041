"""The agent loop of a rollout whose response comes from the data set: the usual prompt, and nothing sampled."""

from collections.abc import Mapping
from typing import SupportsInt, cast

from transformers import PreTrainedTokenizerBase
from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, register

from opd_verl.schema import DATA_RESPONSE
from opd_verl.training.rollout.off_policy import DataResponse, token_ids


class DataResponseLoop(AgentLoopBase):
    """A single turn. Gives the fields that verl's own loop gives, so that rows of both kinds fit one batch."""

    name = DATA_RESPONSE
    """The loop's name in verl's registry. The worker reads the name from this class, so this module is imported and
    the class is registered: verl would only log a rollout with an unknown loop."""

    async def run(self, sampling_params: Mapping[str, object], **kwargs: object) -> AgentLoopOutput:
        """The prompt, and the response that the worker chose."""
        prompt_ids = await self.ct_build_initial_tokens(list(cast(list[dict[str, object]], kwargs["raw_prompt"])))
        chosen = cast(DataResponse, kwargs[DATA_RESPONSE])
        response = token_ids(chosen, cast(PreTrainedTokenizerBase, self.tokenizer), self.rollout_config.response_length)
        step = int(cast(SupportsInt, kwargs["global_steps"]))
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
            metrics=AgentLoopMetrics(generate_sequences=0.0, num_preempted=-1),
            extra_fields={
                "turn_scores": [],
                "tool_rewards": [],
                # Versions of the weights that sampled the response; verl's loop names the step before this one too.
                "min_global_steps": step - 1,
                "max_global_steps": step - 1,
            },
        )


# A call and not a decorator: verl's decorator would hide the class's type, and so `name`.
register(DataResponseLoop.name)(DataResponseLoop)
