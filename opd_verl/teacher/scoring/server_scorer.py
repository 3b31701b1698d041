"""A scorer that asks one of verl's inference servers (vLLM) for log-probs of the tokens in its prompt.

What the server gives: log q of the sampled token, and its top-k on demand, at temperature 1, over the tokenizer's ids
(verl cuts the LM head's padding rows off). It gives no entropy, no hidden states and no log-probs at ids named later.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


class ServerScorer:
    """`Scorer`'s check, plan and score_batch on a server of verl's; `server` is the Ray actor of one replica."""

    def __init__(self, server: "ActorHandle[Any]", limits: ModelLimits, max_tokens_per_batch: int) -> None:
        self.server = server
        self.limits = limits
        self.max_tokens_per_batch = max_tokens_per_batch
        self.asked = 0

    def check(self, request: ScoreRequest) -> None:
        """Raises ValueError if the model cannot score the request: too long, or ids it has no row for."""
        self.limits.check(request, new_tokens=1)

    def plan(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests that the server gets at one time; it makes its own batches of them."""
        lengths = [len(one.prompt_ids) + len(one.response_ids) for one in requests]
        return fill_batches(range(len(requests)), lengths, self.max_tokens_per_batch, padded=False)

    def score_batch(self, requests: Sequence[ScoreRequest], topk: int = 0) -> list[RolloutState]:
        """All requests at once. With `topk` each is asked twice: verl drops a sampled token outside the top-k.

        Raises ServerLostError, what the server raises, and RuntimeError for an answer that is not for these tokens.
        """
        counts = (0, topk) if topk else (0,)
        pending = [[self._ask(request, count) for count in counts] for request in requests]
        try:
            answers = ray.get([one for several in pending for one in several])
        except RayActorError as error:
            raise ServerLostError(str(error)) from error
        rows = [answers[first : first + len(counts)] for first in range(0, len(answers), len(counts))]
        return [
            rollout_state(one, self.limits.vocab_limit, topk, *row) for one, row in zip(requests, rows, strict=True)
        ]

    def _ask(self, request: ScoreRequest, count: int) -> Any:
        self.asked += 1
        return self.server.generate.remote(
            request_id=f"{request.key}.{count}.{self.asked}",
            prompt_ids=[*request.prompt_ids.tolist(), *request.response_ids.tolist()],
            sampling_params={"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": count, "detokenize": False},
        )


def rollout_state(request: ScoreRequest, vocab_limit: int, topk: int, sampled: Any, top: Any = None) -> RolloutState:
    """A rollout's state from verl's TokenOutput for the sampled token, and from that for the `topk` most likely.

    Raises RuntimeError for an answer without log-probs (the server aborted it), for other tokens than asked, and for an
    id of no token among the top-k.
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


def response_rows(request: ScoreRequest, output: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and log-probs f32 [R, width] of the response. Row t of the server's speaks of token t + 1."""
    found = output.extra_fields
    if "prompt_logprobs" not in found:
        raise RuntimeError(f"{request.key}: the server gave no log-probs ({output.stop_reason})")
    first = len(request.prompt_ids) - 1
    rows = slice(first, first + len(request.response_ids))
    ids, log_q = (found[name][rows] for name in ("prompt_ids", "prompt_logprobs"))
    shape = (len(request.response_ids), width)
    return np.array(ids, dtype=np.int32).reshape(shape), np.array(log_q, dtype=np.float32).reshape(shape)
