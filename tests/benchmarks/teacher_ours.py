"""Our scorer's steps: rollouts in, bytes for the wire out, and the parts that this consists of."""

import torch
from step_ours import Step
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.scoring.body import read_padded
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.state import RolloutState
from opd_verl.teacher.wire import encode


def to_bytes(state: RolloutState, request: ScoreRequest) -> bytes:
    """log q and entropy, and top-k where the state has it, its log-probs in float16 as the actor sends them."""
    score = TeacherScore(
        log_q=state.log_q,
        valid=torch.ones(len(state.log_q), dtype=torch.bool),
        entropy=state.entropy,
        topk_ids=state.topk_ids,
        topk_log_q=None if state.topk_log_q is None else state.topk_log_q.half(),
    )
    return encode(score, request.key, request.checksum)


class OurTeacher:
    """Our side of the comparison on fixed requests with different prompts; every step keeps what it made.

    shipped: bytes of all scores by step.
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
        """Scores with top-k, and encodes."""
        self.states = self.scorer.score(self.requests, self.k)
        self.encode()

    def encode(self) -> None:
        """Encodes the top-k scores made last."""
        self.shipped["ours"] = self._bytes(self.states)

    def sampled(self) -> None:
        """Scores the sampled token only, and encodes."""
        self.shipped["ours_sampled"] = self._bytes(self.scorer.score(self.requests))

    @torch.inference_mode()
    def body(self) -> None:
        """The forward pass alone, up to the last hidden states."""
        device = self.scorer.head.weight.device
        for batch in self.scorer.plan(self.requests):
            read_padded(self.scorer.body, [self.requests[index] for index in batch], device)

    def gather(self) -> None:
        """log q at k random ids per token, from the states made last."""
        for state, ids in zip(self.states, self.at_ids, strict=True):
            self.scorer.log_q_at(state, ids)

    def steps(self) -> dict[str, Step]:
        """By name; `ours` before those that read its states."""
        return {
            "ours": self.topk,
            "ours_encode": self.encode,
            "ours_gather": self.gather,
            "ours_body": self.body,
            "ours_sampled": self.sampled,
        }

    def log_q(self) -> Tensor:
        """Of all sampled tokens, f32 [sum R]."""
        return torch.cat([state.log_q for state in self.states])

    def _bytes(self, states: list[RolloutState]) -> int:
        return sum(len(to_bytes(state, request)) for state, request in zip(states, self.requests, strict=True))
