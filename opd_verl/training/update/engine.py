"""verl's FSDP engine with what distillation needs from the student's LM head; opt-in by name.

Chosen by `actor_rollout_ref.model.model_type: opd_language_model`, so that `recipe=grpo` keeps verl's own class.
"""

from typing import Any

import torch
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from opd_verl.fused.head import LMHead
from opd_verl.schema import (
    AT_TEACHER_TOPK,
    FUSED_ROWS,
    MODEL_TYPE,
    OPD_NUM_TOKENS,
    OPD_WEIGHTS,
    STUDENT_TOPK,
    TEACHER_FIELDS,
)
from opd_verl.teacher.client.remote_head import teacher_head
from opd_verl.teacher.snapshot import is_snapshot, write_snapshot
from opd_verl.training.token_positions import jagged, packed_positions, response_positions, row_lengths
from opd_verl.training.update.actor_loss import OpdLoss, eligible_tokens
from opd_verl.training.update.head_requests import HeadRequest, HeadSwitch, LogProbPass, Update

# verl's register decorator hides the class's type.
FSDPEngineWithLMHead: Any = transformer_impl.FSDPEngineWithLMHead


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class OpdEngine(FSDPEngineWithLMHead):
    """Adds three things to verl's engine.

    * Every distribution is normalised over the tokenizer's ids: rows of the LM head beyond the tokenizer, which
      verl's rollout server masks, are cut off here too.
    * The log-prob pass gives the student's top-k (`student_topk_ids`, `student_topk_log_probs`) and its log-probs at
      the teacher's (`student_log_probs_at_teacher_topk`), nested over response tokens.
    * With FUSED_ROWS >= 0 the LM head is applied in chunks of rows, to response tokens only, and logits of the whole
      micro-batch never exist: log-probs, entropies, and the gradients of the loss's exact terms. Prompt positions of
      `log_probs` and `entropy`, which nobody reads, are 0 then.
    """

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        model_config.model_type = "language_model"  # verl builds the module by this name
        super().__init__(model_config, *args, **kwargs)
        self.vocab_limit = len(model_config.tokenizer)
        self.loss_function: Any = None
        self.request: HeadRequest | None = None
        self.teacher_head: LMHead | None = None

    def initialize(self) -> None:
        """verl's own, then the LM head learns to answer requests."""
        super().initialize()
        self.switch = HeadSwitch(plain_head(self.module), self.vocab_limit)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's own; for the folder of a teacher's snapshot, the weights alone."""
        if not is_snapshot(local_path):
            return super().save_checkpoint(local_path, *args, **kwargs)
        with self.eval_mode():
            write_snapshot(self.module, local_path)
        self.teacher_head = None  # the teacher takes these weights, so its LM head must be fetched anew

    def forward_backward_batch(self, data: Any, loss_function: Any, forward_only: bool = False) -> Any:
        """Counts the tokens eligible for distillation over all ranks, where not all are."""
        if OPD_WEIGHTS in data:
            count = eligible_tokens(data).sum().to(get_device_id())
            torch.distributed.all_reduce(count, group=self.get_data_parallel_group())
            tu.assign_non_tensor(data, **{OPD_NUM_TOKENS: count.item()})
        return super().forward_backward_batch(data, loss_function, forward_only)

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """One micro-batch; the loss function says which log-probs the LM head must give."""
        self.loss_function = loss_function
        try:
            return super().forward_step(micro_batch, loss_function, forward_only)
        finally:
            self.switch.request = None

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """verl's inputs; on the fused path the LM head is told what to answer and on which rows."""
        inputs, args = super().prepare_model_inputs(micro_batch)
        rows: Any = tu.get_non_tensor_data(micro_batch, FUSED_ROWS, default=-1)
        self.request = self.head_request(micro_batch, args, rows)
        if rows >= 0:
            self.switch.request = self.request
            self.switch.select = lambda hidden: response_rows(hidden, micro_batch, args)
        return inputs, args

    def head_request(self, micro_batch: Any, args: dict[str, Any], rows: int) -> HeadRequest:
        """What this micro-batch asks of the LM head."""
        temperature = None if args["temperature_is_one"] else response_temperature(micro_batch, args)
        if isinstance(self.loss_function, OpdLoss) and torch.is_grad_enabled():
            if self.loss_function.terms.full and self.teacher_head is None:
                self.teacher_head = teacher_head(get_device_id())
            return Update.of(
                self.loss_function,
                micro_batch,
                temperature=temperature,
                with_entropy=bool(tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)),
                teacher_head=self.teacher_head,
                rows=rows if rows > 0 else None,
            )
        at_teacher = tu.get_non_tensor_data(micro_batch, AT_TEACHER_TOPK, default=False)
        topk: Any = tu.get_non_tensor_data(micro_batch, STUDENT_TOPK, default=0)
        return LogProbPass(
            tokens=micro_batch["responses"].values(),
            teacher_ids=micro_batch[TEACHER_FIELDS.ids].values() if at_teacher else None,
            topk=topk,
            temperature=temperature,
            rows=rows if rows > 0 else None,
        )

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """verl's outputs, plus what distillation asked for."""
        assert self.request is not None
        if self.switch.request is not None:
            return place(self.switch.answers(output.logits), micro_batch)
        if output.logits.shape[-1] > self.vocab_limit:
            output.logits = output.logits[..., : self.vocab_limit]
        extra = {}
        if self.needs_whole_vocabulary(self.request):
            # The rows are copied out first: verl may scale or overwrite the logits' buffer in place.
            rows = response_rows(output.logits, micro_batch, output_args).float()
            heat = response_temperature(micro_batch, output_args)
            extra = self.request.plain((rows / heat[:, None]).log_softmax(dim=-1))
        outputs = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return outputs | place(extra, micro_batch)

    @staticmethod
    def needs_whole_vocabulary(request: HeadRequest) -> bool:
        """Whether the plain path needs more than verl's own log-probs and entropies."""
        if isinstance(request, Update):
            return request.loss.terms.any or request.loss.terms.full
        return request.topk > 0 or request.teacher_ids is not None


def plain_head(module: Any) -> torch.nn.Linear:
    """The model's LM head, where nothing but a matrix (and a bias) stands between hidden states and logits."""
    layer = module.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise TypeError(f"the LM head is a {type(layer).__name__}, not a Linear layer; recipe=opd cannot train it")
    return layer


def response_rows(values: Tensor, micro_batch: Any, args: dict[str, Any]) -> Tensor:
    """Rows that predict a response token [N, ...], of hidden states or logits in verl's packed or padded layout."""
    offsets, lengths = micro_batch["input_ids"].offsets(), row_lengths(micro_batch["responses"])
    if "temperature_rmpad" in args:  # packed: [1, sum L, ...]
        return values[0, packed_positions(offsets, lengths)]
    sequence, column = response_positions(offsets.diff(), lengths)
    return values[sequence, column]


def response_temperature(micro_batch: Any, args: dict[str, Any]) -> Tensor:
    """The rollout temperature of every response token [N], float32."""
    lengths = row_lengths(micro_batch["responses"])
    if "temperature_rmpad" in args:
        return args["temperature_rmpad"][packed_positions(micro_batch["input_ids"].offsets(), lengths)]
    return args["temperature"].repeat_interleave(lengths)


def place(found: dict[str, Tensor], micro_batch: Any) -> dict[str, Tensor]:
    """verl's layouts: `log_probs` and `entropy` nested over whole sequences, the rest nested over response tokens.

    What only the loss reads (a scalar, or flat values of a term) is passed on as it is.
    """
    offsets, lengths = micro_batch["input_ids"].offsets(), row_lengths(micro_batch["responses"])
    outputs: dict[str, Tensor] = {}
    for name, value in found.items():
        if name in ("log_p", "entropy"):
            flat = value.new_zeros(int(offsets[-1])).index_put((packed_positions(offsets, lengths),), value)
            key = "log_probs" if name == "log_p" else name
            outputs[key] = torch.nested.nested_tensor_from_jagged(flat, offsets)
        else:
            outputs[name] = jagged(value, lengths) if name.startswith("student_") else value
    return outputs
