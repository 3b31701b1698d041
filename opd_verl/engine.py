"""verl's FSDP engine with what distillation needs from the student's logits; opt-in by name.

Chosen by `actor_rollout_ref.model.model_type: opd_language_model`, so that `recipe=grpo` keeps verl's own class.
"""

from typing import Any

import torch
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from opd_verl.packing import jagged, packed_positions, response_positions, row_lengths

# verl's register decorator hides the class's type.
FSDPEngineWithLMHead: Any = transformer_impl.FSDPEngineWithLMHead

MODEL_TYPE = "opd_language_model"
STUDENT_TOPK = "opd_student_topk"
"""Non-tensor flag of a worker call: k of the student's top-k, 0 where nothing reads it."""


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class OpdEngine(FSDPEngineWithLMHead):
    """Adds two things to verl's engine.

    * Every distribution is normalised over the tokenizer's ids: rows of the LM head beyond the tokenizer, which
      verl's rollout server masks, are cut off here too.
    * The student's top-k: `student_topk_ids` and `student_topk_log_probs` from the log-prob pass, and log p at those
      ids, with gradient, in the update. Each is nested over response tokens, [R, K], float32, nats.
    """

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        model_config.model_type = "language_model"  # verl builds the module by this name
        super().__init__(model_config, *args, **kwargs)
        self.vocab_limit = len(model_config.tokenizer)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """verl's outputs, plus the student's top-k where it is asked for."""
        if output.logits.shape[-1] > self.vocab_limit:
            output.logits = output.logits[..., : self.vocab_limit]
        extra = self.student_topk(output.logits, output_args, micro_batch)
        outputs = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return {**outputs, **extra}

    def student_topk(self, logits: Tensor, output_args: dict[str, Any], micro_batch: Any) -> dict[str, Tensor]:
        """The top-k of the log-prob pass (no grad), or log p at the stored ids (update), or nothing."""
        k: Any = tu.get_non_tensor_data(micro_batch, STUDENT_TOPK, default=0)
        if not k:
            return {}
        lengths = row_lengths(micro_batch["responses"])
        log_p = self.response_log_probs(logits, output_args, micro_batch, lengths)
        if torch.is_grad_enabled():  # the update: at the ids that the log-prob pass chose
            ids = micro_batch["student_topk_ids"].values().long()
            return {"student_topk_log_probs": jagged(log_p.gather(-1, ids), lengths)}
        top = log_p.topk(k, dim=-1)
        return {
            "student_topk_ids": jagged(top.indices.int(), lengths),
            "student_topk_log_probs": jagged(top.values, lengths),
        }

    def response_log_probs(
        self, logits: Tensor, output_args: dict[str, Any], micro_batch: Any, lengths: Tensor
    ) -> Tensor:
        """log p over the vocabulary at every response token [sum R, V], float32, at the rollout temperature.

        The rows are copied out first: verl may scale or overwrite the logits' buffer in place.
        """
        offsets = micro_batch["input_ids"].offsets()
        if "temperature_rmpad" in output_args:  # packed: [1, sum L, V]
            positions = packed_positions(offsets, lengths)
            rows, temperature = logits[0, positions], output_args["temperature_rmpad"][positions]
        else:  # padded: [B, L, V]
            sequence, column = response_positions(offsets.diff(), lengths)
            rows, temperature = logits[sequence, column], output_args["temperature"][sequence]
        return (rows.float() / temperature.unsqueeze(-1)).log_softmax(dim=-1)
