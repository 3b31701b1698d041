"""The records that travel between trainer and teacher: a rollout to score, the values wanted of it, and its score.

Shapes: R response tokens, K teacher top-k, K' ids asked for (the student's top-k), H the teacher's hidden size. All
log-probs and entropies in nats.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

LOG_PROB_DTYPES = (torch.float32, torch.float16)
"""Dtypes of top-k log-probs. bf16 is refused; recipes/LOG.md shows what each dtype does to the gradient."""
HIDDEN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of hidden states: they travel in the teacher's own dtype, without rounding."""
IdRows = np.ndarray | Tensor
"""Integer ids [R, K'] of one rollout, as an array or a CPU tensor."""


def _token_ids(ids: np.ndarray, name: str) -> np.ndarray:
    array = np.ascontiguousarray(ids, dtype=np.int32)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one row of token ids without padding, got shape {array.shape}")
    return array


@dataclass(frozen=True)
class CollectSpec:
    """The values that one `collect` asks for at every response token, beside log q of the sampled token."""

    step: int
    """The training step. A replica forgets the rollouts of earlier steps when it answers."""
    topk: int = 0
    """How many of the teacher's most likely ids to send, with their log-probs; 0: none."""
    entropy: bool = True
    """Whether to send the entropy over the whole vocabulary."""
    hidden: bool = False
    """Whether to send last hidden states."""


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """One rollout to score: `response_ids` [R] given `prompt_ids` [P], both int32 and unpadded.

    `key` names the rollout in the whole run; its part before the first "_" names the prompt. `route` is the value of
    the data field `opd.route_field`, which picks the teacher; it is no part of the question.
    Raises ValueError if an array is not one-dimensional or the prompt is empty (the first token needs a predecessor).
    """

    key: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    route: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", _token_ids(self.prompt_ids, f"{self.key}: prompt_ids"))
        object.__setattr__(self, "response_ids", _token_ids(self.response_ids, f"{self.key}: response_ids"))
        if not len(self.prompt_ids):
            raise ValueError(f"{self.key}: empty prompt; the teacher needs at least one token before the response")

    @property
    def checksum(self) -> int:
        """crc32 of both lengths and all tokens: same key and same checksum means the same question."""
        # The lengths separate prompt from response: [1, 2] + [3] and [1] + [2, 3] have the same tokens.
        lengths = struct.pack("<II", len(self.prompt_ids), len(self.response_ids))
        return zlib.crc32(self.response_ids.tobytes(), zlib.crc32(self.prompt_ids.tobytes(), zlib.crc32(lengths)))


@dataclass(eq=False)
class TeacherScore:
    """The teacher's view of one rollout's R response tokens; CPU tensors without gradient, in nats.

    log_q            f32 [R]        log q_t(y_t) of the sampled token; always f32
    valid            bool [R]       False: this token must be masked
    entropy          f32 [R]        full-vocabulary H_t^q, or None if not asked
    topk_ids         i32 [R, K]     teacher's most likely ids, descending, or None
    topk_log_q       f32|f16 [R, K] log-probs of topk_ids, or None
    at_ids_log_q     f32|f16 [R, K'] log-probs at the caller's ids, in the caller's order, or None
    hidden           f32|f16|bf16 [R, H] last hidden states h_t, model dtype: q_t = softmax(LM head of h_t); or None

    A non-finite value in any field sets `valid` False for its token; the value stays non-finite and never becomes 0.0.
    """

    log_q: Tensor
    valid: Tensor
    entropy: Tensor | None = None
    topk_ids: Tensor | None = None
    topk_log_q: Tensor | None = None
    at_ids_log_q: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        self._assert_layout()
        for values in (self.log_q, self.entropy, self.topk_log_q, self.at_ids_log_q, self.hidden):
            if values is not None:
                finite = torch.isfinite(values)
                self.valid = self.valid & (finite if values.ndim == 1 else finite.all(-1))

    @property
    def length(self) -> int:
        """Number of response tokens, R."""
        return self.log_q.shape[0]

    def _assert_layout(self) -> None:
        length = self.length
        assert self.log_q.dtype == torch.float32 and self.log_q.ndim == 1, self.log_q
        assert self.valid.dtype == torch.bool and self.valid.shape == (length,), self.valid
        assert (self.topk_ids is None) == (self.topk_log_q is None), "top-k ids and log-probs come together"
        if self.entropy is not None:
            assert self.entropy.dtype == torch.float32 and self.entropy.shape == (length,), self.entropy
        if self.topk_ids is not None and self.topk_log_q is not None:
            assert self.topk_ids.dtype == torch.int32 and self.topk_ids.shape == self.topk_log_q.shape
        wide = ((self.topk_log_q, LOG_PROB_DTYPES), (self.at_ids_log_q, LOG_PROB_DTYPES), (self.hidden, HIDDEN_DTYPES))
        for values, dtypes in wide:
            if values is not None:
                assert values.dtype in dtypes and values.ndim == 2 and len(values) == length, values

    @classmethod
    def missing(
        cls,
        length: int,
        topk: int = 0,
        at_ids: int = 0,
        entropy: bool = True,
        hidden: int = 0,
        hidden_dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The score of a rollout that nobody could score: every token invalid, every value NaN, ids 0.

        A width of 0 leaves a field out. `hidden` is H. `hidden_dtype` is the dtype of the other scores' hidden states,
        so that `torch.cat` of all scores keeps it.
        """
        nan = torch.full((length,), torch.nan)  # NaN, not 0: log q = 0 would be a probability of 1
        return cls(
            log_q=nan,
            valid=torch.zeros(length, dtype=torch.bool),
            entropy=nan.clone() if entropy else None,
            topk_ids=torch.zeros(length, topk, dtype=torch.int32) if topk else None,
            topk_log_q=torch.full((length, topk), torch.nan) if topk else None,
            at_ids_log_q=torch.full((length, at_ids), torch.nan) if at_ids else None,
            hidden=torch.full((length, hidden), torch.nan, dtype=hidden_dtype) if hidden else None,
        )
