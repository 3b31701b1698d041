"""The actor loss of exact objectives: what verl's `ppo_loss` gives, plus a divergence per response token."""

from typing import Any

from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss

from opd_verl.objectives.topk import renormalised_reverse_kl


def topk_loss(
    config: Any, model_output: dict[str, Tensor], data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """Exact reverse KL on the student's top-k, mean over the response tokens of the global mini-batch.

    verl's `ppo_loss` runs first with the policy loss `opd_none` (zero), so that its entropy bonus, reference KL and
    metrics stay what the user set them to. Numerator: tokens with mask 1. Denominator: `batch_num_tokens`, all such
    tokens of the mini-batch on every rank; hence the loss does not depend on micro-batches or rank count.

    Args:
        config: verl's actor config.
        model_output: `log_probs` and `student_topk_log_probs` [R, K], nested; the gradient's source.
        data: micro-batch with `teacher_log_probs_at_student_topk` [R, K] and `response_mask` [R], nested.

    Returns:
        scalar loss (nats per token, times verl's dp_size, which FSDP's gradient mean divides out) and metrics.
    """
    dp_size, num_tokens = data["dp_size"], max(data["batch_num_tokens"], 1)
    tu.assign_non_tensor(data, batch_num_tokens=num_tokens)  # for verl's own terms: all tokens masked is 0, not 0 / 0
    mask = data["response_mask"].values()
    divergence = renormalised_reverse_kl(
        model_output["student_topk_log_probs"].values(), data["teacher_log_probs_at_student_topk"].values()
    )
    exact = (divergence * mask).sum() / num_tokens * dp_size
    rest, metrics = ppo_loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
    metrics["opd/topk_reverse_kl"] = Metric(value=exact.detach(), aggregation=AggregationType.SUM)
    return exact + rest, metrics
