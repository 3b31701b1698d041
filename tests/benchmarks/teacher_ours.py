"""The steps of our scorer, from rollouts to bytes for the wire, and their parts."""

import torch
from step_ours import Step
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.scoring.body import read_padded
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.state import RolloutState
from opd_verl.teacher.wire import encode


def to_bytes(state: RolloutState, request: ScoreRequest) -> bytes:
    """Encodes log q, entropy and, where present, top k; its log-probs in float16, as the actor sends them."""
    score = TeacherScore(
        log_q=state.log_q,
        valid=torch.ones(len(state.log_q), dtype=torch.bool),
        entropy=state.entropy,
        topk_ids=state.topk_ids,
        topk_log_q=None if state.topk_log_q is None else state.topk_log_q.half(),
    )
    return encode(score, request.key, request.checksum)


class OurTeacher:
    """Our side of the comparison, on fixed requests with different prompts. A step keeps its results for the next step.

    shipped: step -> bytes of all its scores.
    """

    def __init__(self, scorer: Scorer, requests: list[ScoreRequest], k: int) -> None:
        self.scorer, self.requests, self.k = scorer, requests, k
        self.states: list[RolloutState] = []
        self.shipped: dict[str, int] = {}
        random = torch.Generator().manual_seed(0)
        self.at_ids = [
            torch.randint(scorer.vocab_limit, (len(request.response_ids), k), generator=random) for request in requests
        ]

    def topk(self) -> None:
        """Scores with top k, and encodes."""
        self.states = self.scorer.score(self.requests, self.k)
        self.encode()

    def encode(self) -> None:
        """Encodes the last top-k scores."""
        self.shipped["ours"] = self._bytes(self.states)

    def sampled(self) -> None:
        """Scores the sampled token only, and encodes."""
        self.shipped["ours_sampled"] = self._bytes(self.scorer.score(self.requests))

    @torch.inference_mode()
    def body(self) -> None:
        """Runs the forward pass alone, up to the last hidden states."""
        device = self.scorer.head.weight.device
        for batch in self.scorer.batches(self.requests):
            read_padded(self.scorer.body, [self.requests[index] for index in batch], device)

    def gather(self) -> None:
        """Computes log q at k random ids per token, from the last states."""
        for state, ids in zip(self.states, self.at_ids, strict=True):
            self.scorer.log_q_at(state, ids)

    def steps(self) -> dict[str, Step]:
        """Returns the steps by name; `ours` comes before the steps that read its states."""
        return {
            "ours": self.topk,
            "ours_encode": self.encode,
            "ours_gather": self.gather,
            "ours_body": self.body,
            "ours_sampled": self.sampled,
        }

    def log_q(self) -> Tensor:
        """Returns log q of all sampled tokens, float32 [sum R]."""
        return torch.cat([state.log_q for state in self.states])

    def _bytes(self, states: list[RolloutState]) -> int:
        return sum(len(to_bytes(state, request)) for state, request in zip(states, self.requests, strict=True))
