"""The state that the teacher keeps of a scored rollout, and the answers made from it.

Shapes: R response tokens, H hidden size, K top-k, K' ids asked for. Nats.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd_verl.teacher.score import CollectSpec, TeacherScore


@dataclass(frozen=True, eq=False)
class RolloutState:
    """One scored rollout, as the teacher keeps it until the step is over.

    hidden [R, H] last hidden states (model dtype) and logsumexp f32 [R] of logits / temperature, on the model's device;
    log_q, entropy f32 [R], topk_ids i32 [R, K], topk_log_q f32 [R, K] (or None) on the CPU. A state from an inference
    server has no entropy, and empty hidden and logsumexp.
    """

    hidden: Tensor
    logsumexp: Tensor
    log_q: Tensor
    entropy: Tensor | None
    topk_ids: Tensor | None = None
    topk_log_q: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.hidden, self.logsumexp, self.log_q, self.entropy, self.topk_ids, self.topk_log_q)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def kept(self, keep_hidden: bool, on_host: bool) -> "RolloutState":
        """The state without hidden states unless `keep_hidden`, and in host memory if `on_host`."""
        hidden = self.hidden if keep_hidden else self.hidden[:0].clone()  # a view would keep the whole tensor alive
        if on_host:
            return replace(self, hidden=hidden.cpu(), logsumexp=self.logsumexp.cpu())
        return replace(self, hidden=hidden)

    def answer(self, spec: CollectSpec, at_ids_log_q: Tensor | None, wire_dtype: torch.dtype) -> TeacherScore:
        """A score with the values of `spec`; at_ids_log_q f32 [R, K'] and top-k log-probs in `wire_dtype`."""
        topk = spec.topk
        topk_log_q = self.topk_log_q[:, :topk] if topk and self.topk_log_q is not None else None
        return TeacherScore(
            log_q=self.log_q,
            valid=torch.ones(len(self.log_q), dtype=torch.bool),
            entropy=self.entropy if spec.entropy else None,
            topk_ids=self.topk_ids[:, :topk] if topk and self.topk_ids is not None else None,
            topk_log_q=None if topk_log_q is None else topk_log_q.to(wire_dtype),
            at_ids_log_q=None if at_ids_log_q is None else at_ids_log_q.to(wire_dtype),
            hidden=self.hidden.cpu() if spec.hidden else None,
        )
