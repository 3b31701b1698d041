"""verl's FSDP engine, and the values that distillation needs from the student's LM head.

Chosen by `actor_rollout_ref.model.model_type: opd_language_model`, so that `recipe=grpo` keeps verl's own class.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.device import get_device_id
from verl.workers.config import HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from opd_verl.fused.head import LMHead
from opd_verl.schema import (
    AGGREGATION_WEIGHTS,
    AT_TEACHER_TOPK,
    FUSED_ROWS,
    LOG_P,
    MODEL_TYPE,
    OPD_NUM_TOKENS,
    OPD_WEIGHTS,
    STUDENT_TOPK,
    TEACHER_FIELDS,
)
from opd_verl.teacher.client.remote_head import teacher_head
from opd_verl.teacher.snapshot import is_snapshot, write_snapshot
from opd_verl.training.token_positions import jagged, offsets, packed_positions, response_positions, row_lengths
from opd_verl.training.update.actor_loss import OpdLoss, eligible_tokens
from opd_verl.training.update.head_requests import HeadRequest, HeadSwitch, LogProbRequest, UpdateRequest
from opd_verl.training.verl_types import Fields, HasOutputEmbeddings, Output, OutputArgs, bool_flag, int_flag, set_int

# verl's register decorator hides the class's type.
FSDPEngineWithLMHead: Any = transformer_impl.FSDPEngineWithLMHead


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class OpdEngine(FSDPEngineWithLMHead):
    """Adds three things to verl's engine.

    * Every distribution is normalised over the tokenizer's ids: rows of the LM head beyond the tokenizer, which
      verl's rollout server masks, are cut off here too.
    * The log-prob pass gives the student's top-k (`student_topk_ids`, `student_topk_log_probs`) and its log-probs at
      the teacher's top-k ids (`student_log_probs_at_teacher_topk`), jagged over response tokens.
    * With FUSED_ROWS >= 0 the LM head is applied in chunks of rows, to response tokens only, and logits of the whole
      micro-batch never exist: log-probs, entropies, and the gradients of the loss's exact terms. Prompt positions of
      `log_probs` and `entropy`, which nobody reads, are 0 then.

    verl calls, for each micro-batch: `forward_step` -> `prepare_model_inputs` -> the model -> `prepare_model_outputs`
    -> the loss.
    """

    def __init__(self, model_config: HFModelConfig, *args: object, **kwargs: object) -> None:
        model_config.model_type = "language_model"  # verl builds the module by this name
        super().__init__(model_config, *args, **kwargs)
        self.vocab_limit = len(model_config.tokenizer)
        self.loss_function: object = None
        self.request: HeadRequest | None = None
        self.teacher_head: LMHead | None = None

    def initialize(self) -> None:
        """Builds verl's module, and puts a `HeadSwitch` in front of its LM head."""
        super().initialize()
        self.switch = HeadSwitch(plain_head(self.module), self.vocab_limit)

    def save_checkpoint(self, local_path: str, *args: object, **kwargs: object) -> None:
        """Saves verl's checkpoint. Into the folder of a teacher's snapshot it saves only the weights."""
        # verl's workers offer no other call by which every rank can be asked to write weights.
        if not is_snapshot(local_path):
            return super().save_checkpoint(local_path, *args, **kwargs)
        with self.eval_mode():
            write_snapshot(self.module, local_path)
        self.teacher_head = None  # the teacher takes these weights, so its LM head must be fetched anew

    def forward_backward_batch(
        self, data: Fields, loss_function: object, forward_only: bool = False
    ) -> list[TensorDict]:
        """Counts the tokens eligible for distillation over all ranks, where not every token is eligible."""
        if OPD_WEIGHTS in data:
            # All ranks have this field or none has it, so all of them enter the collective. It runs once for the whole
            # mini-batch, whose eligible tokens are the loss's denominator.
            count = eligible_tokens(data).sum().to(get_device_id())
            torch.distributed.all_reduce(count, group=self.get_data_parallel_group())
            set_int(data, OPD_NUM_TOKENS, int(count.item()))
        return super().forward_backward_batch(data, loss_function, forward_only)

    def forward_step(
        self, micro_batch: Fields, loss_function: object, forward_only: bool
    ) -> tuple[Tensor, dict[str, object]]:
        """Runs one micro-batch; the loss function says which log-probs the LM head must give."""
        self.loss_function = loss_function
        try:
            return super().forward_step(micro_batch, loss_function, forward_only)
        finally:
            self.switch.request = None

    def prepare_model_inputs(self, micro_batch: Fields) -> tuple[dict[str, object], OutputArgs]:
        """verl's inputs. On the fused path the LM head also gets its request, and the rows to answer for."""
        inputs, args = super().prepare_model_inputs(micro_batch)
        rows = int_flag(micro_batch, FUSED_ROWS, default=-1)
        self.request = self.head_request(micro_batch, args, rows)
        if rows >= 0:
            self.switch.request = self.request
            self.switch.select = lambda hidden: response_rows(hidden, micro_batch, args)
        return inputs, args

    def head_request(self, micro_batch: Fields, args: OutputArgs, rows: int) -> HeadRequest:
        """The question of this micro-batch to the LM head."""
        temperature = None if args["temperature_is_one"] else response_temperature(micro_batch, args)
        # A pass without gradient may carry the loss too; it needs only log-probs.
        if isinstance(self.loss_function, OpdLoss) and torch.is_grad_enabled():
            if self.loss_function.terms.full and self.teacher_head is None:
                self.teacher_head = teacher_head(get_device_id())
            return UpdateRequest.of(
                self.loss_function,
                micro_batch,
                temperature=temperature,
                with_entropy=bool_flag(micro_batch, "calculate_entropy"),
                teacher_head=self.teacher_head,
                rows=rows if rows > 0 else None,
            )
        at_teacher = bool_flag(micro_batch, AT_TEACHER_TOPK)
        return LogProbRequest(
            tokens=micro_batch["responses"].values(),
            teacher_ids=micro_batch[TEACHER_FIELDS.ids].values() if at_teacher else None,
            topk=int_flag(micro_batch, STUDENT_TOPK, default=0),
            temperature=temperature,
            rows=rows if rows > 0 else None,
        )

    def prepare_model_outputs(
        self, output: Output, output_args: OutputArgs, micro_batch: Fields, logits_processor_func: object
    ) -> dict[str, Tensor]:
        """verl's outputs, plus the answers that distillation asked for."""
        assert self.request is not None
        # The loss takes the weights from here, so that a micro-batch computes them once.
        weights = {AGGREGATION_WEIGHTS: self.request.weights} if isinstance(self.request, UpdateRequest) else {}
        if self.switch.request is not None:
            return place(self.switch.answers(output.logits), micro_batch) | weights
        if output.logits.shape[-1] > self.vocab_limit:
            output.logits = output.logits[..., : self.vocab_limit]
        extra = {}
        if self.needs_whole_vocabulary(self.request):
            # The rows are copied out first: verl may scale or overwrite the logits' buffer in place.
            rows = response_rows(output.logits, micro_batch, output_args).float()
            temperature = response_temperature(micro_batch, output_args)
            extra = self.request.plain((rows / temperature[:, None]).log_softmax(dim=-1))
        outputs = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return outputs | place(extra, micro_batch) | weights

    @staticmethod
    def needs_whole_vocabulary(request: HeadRequest) -> bool:
        """Whether the plain path needs more than verl's own log-probs and entropies."""
        if isinstance(request, UpdateRequest):
            return request.loss.terms.any or request.loss.terms.full
        return request.topk > 0 or request.teacher_ids is not None


def plain_head(module: HasOutputEmbeddings) -> torch.nn.Linear:
    """The model's LM head, a matrix and perhaps a bias. Raises TypeError for any other layer."""
    layer = module.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise TypeError(f"the LM head is a {type(layer).__name__}, not a Linear layer; recipe=opd cannot train it")
    return layer


def response_rows(values: Tensor, micro_batch: Fields, args: OutputArgs) -> Tensor:
    """Rows that predict a response token [N, ...], of hidden states or logits in verl's packed or padded layout."""
    starts, lengths = offsets(micro_batch["input_ids"]), row_lengths(micro_batch["responses"])
    if "temperature_rmpad" in args:  # packed: [1, sum L, ...]
        return values[0, packed_positions(starts, lengths)]
    sequence, column = response_positions(starts.diff(), lengths)
    return values[sequence, column]


def response_temperature(micro_batch: Fields, args: OutputArgs) -> Tensor:
    """The rollout temperature of every response token [N], float32."""
    lengths = row_lengths(micro_batch["responses"])
    if "temperature_rmpad" in args:
        return args["temperature_rmpad"][packed_positions(offsets(micro_batch["input_ids"]), lengths)]
    return args["temperature"].repeat_interleave(lengths)


def place(answers: dict[str, Tensor], micro_batch: Fields) -> dict[str, Tensor]:
    """verl's layouts: `log_probs` and `entropy` jagged over whole sequences, the rest jagged over response tokens.

    Answers that only the loss reads (a scalar, or flat values of a term) are passed on unchanged.
    """
    starts, lengths = offsets(micro_batch["input_ids"]), row_lengths(micro_batch["responses"])
    outputs: dict[str, Tensor] = {}
    for name, value in answers.items():
        if name in (LOG_P, "entropy"):
            # verl reads the log-prob of the token at position t from position t - 1, where it is predicted.
            flat = value.new_zeros(int(starts[-1])).index_put((packed_positions(starts, lengths),), value)
            key = "log_probs" if name == LOG_P else name
            outputs[key] = torch.nested.nested_tensor_from_jagged(flat, starts)
        else:
            outputs[name] = jagged(value, lengths) if name.startswith("student_") else value
    return outputs
