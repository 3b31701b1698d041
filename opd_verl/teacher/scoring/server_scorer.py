"""A scorer that asks one of verl's inference servers (vLLM) for log-probs of the tokens in its prompt.

The server gives log q of the sampled token, and its top-k on demand, at temperature 1, over the tokenizer's ids (verl
cuts the LM head's padding rows off). It gives no entropy, no hidden states and no log-probs at ids named later.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import fill_batches
from opd_verl.teacher.scoring.limits import ModelLimits
from opd_verl.teacher.scoring.state import RolloutState

if TYPE_CHECKING:
    from ray.actor import ActorHandle

ONLY_LOG_PROBS = "an inference server gives log-probs of the sampled token and its top-k alone; use teacher=scorer"


class ServerLostError(RuntimeError):
    """The server is dead: no rollout can be scored, and smaller batches would not help."""


class ServerAnswer(Protocol):
    """The two fields of verl's TokenOutput that are read here."""

    @property
    def extra_fields(self) -> Mapping[str, list[list[float]]]:
        """`prompt_ids` and `prompt_logprobs`, a row per token of the prompt; both absent where the server aborted."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Why the server stopped."""
        ...


class ServerScorer:
    """`Scorer.check`, `batches` and `score_batch` on one of verl's servers; `server` is its Ray actor."""

    def __init__(self, server: "ActorHandle", limits: ModelLimits, max_tokens_per_batch: int) -> None:
        self.server = server
        self.limits = limits
        self.max_tokens_per_batch = max_tokens_per_batch
        self.asked = 0

    def check(self, request: ScoreRequest) -> None:
        """Raises ValueError if the model cannot score the request: too long, or ids it has no embedding for."""
        self.limits.check(request, new_tokens=1)  # vLLM must generate a token, which needs a position

    def batches(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests that the server gets at one time; it makes its own batches of them."""
        lengths = [len(request.prompt_ids) + len(request.response_ids) for request in requests]
        return fill_batches(range(len(requests)), lengths, self.max_tokens_per_batch, padded=False)

    def score_batch(self, requests: Sequence[ScoreRequest], topk: int = 0) -> list[RolloutState]:
        """Asks for all requests at once. With `topk` it asks twice: verl drops a sampled token outside the top-k.

        Raises ServerLostError, any error of the server, and RuntimeError for an answer that is not for these tokens.
        """
        counts = (0, topk) if topk else (0,)
        pending = [self._ask(request, count) for request in requests for count in counts]
        try:
            answers: list[ServerAnswer] = ray.get(pending)
        except RayActorError as error:
            raise ServerLostError(str(error)) from error
        rows = [answers[first : first + len(counts)] for first in range(0, len(answers), len(counts))]
        limit = self.limits.vocab_limit
        return [rollout_state(request, limit, topk, *row) for request, row in zip(requests, rows, strict=True)]

    def _ask(self, request: ScoreRequest, count: int) -> ray.ObjectRef:
        self.asked += 1  # part of the id: vLLM refuses an id that it still works on, and a request may be asked again
        return self.server.generate.remote(
            request_id=f"{request.key}.{count}.{self.asked}",
            prompt_ids=[*request.prompt_ids.tolist(), *request.response_ids.tolist()],
            sampling_params={"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": count, "detokenize": False},
        )


def rollout_state(
    request: ScoreRequest, vocab_limit: int, topk: int, sampled: ServerAnswer, top: ServerAnswer | None = None
) -> RolloutState:
    """A rollout's state from the server's answers for the sampled token and for the `topk` most likely ids.

    Raises RuntimeError for an answer without log-probs (the server aborted it), for other tokens than asked, and for a
    top-k id beyond the tokenizer's ids.
    """
    ids, log_q = response_rows(request, sampled, 1)
    if not np.array_equal(ids[:, 0], request.response_ids):
        raise RuntimeError(f"{request.key}: the server answered for other tokens than it was asked for")
    nothing, log_q = torch.zeros(0), torch.from_numpy(log_q[:, 0].copy())
    if top is None:
        return RolloutState(nothing, nothing, log_q, None)
    top_ids, top_log_q = response_rows(request, top, topk)
    if top_ids.max(initial=0) >= vocab_limit:
        raise RuntimeError(f"{request.key}: top-k holds id {top_ids.max()}, which is no token's")
    return RolloutState(nothing, nothing, log_q, None, torch.from_numpy(top_ids), torch.from_numpy(top_log_q))


def response_rows(request: ScoreRequest, answer: ServerAnswer, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and log-probs f32 [R, width] of the response. Row t of the server's answer is about token t + 1."""
    fields = answer.extra_fields
    if "prompt_logprobs" not in fields:
        raise RuntimeError(f"{request.key}: the server gave no log-probs ({answer.stop_reason})")
    first = len(request.prompt_ids) - 1
    rows = slice(first, first + len(request.response_ids))
    ids, log_q = (fields[name][rows] for name in ("prompt_ids", "prompt_logprobs"))
    shape = (len(request.response_ids), width)
    return np.array(ids, dtype=np.int32).reshape(shape), np.array(log_q, dtype=np.float32).reshape(shape)
