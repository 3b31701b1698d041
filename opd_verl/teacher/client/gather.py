"""Asks replicas for scores in slices of bounded size, and notices those that are gone, silent or answer nonsense.

No model code and no policy: what to do about a lost replica or a failed rollout is `TeacherPool`'s decision.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from opd_verl.teacher.replica.actor import CollectItem
from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.wire import decode

LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The replica is gone or silent. Anything else that it raises is a bug or a bad setting, and propagates."""
REPLY_BYTES = 64 << 20
"""Largest answer to one call, roughly: a step of a thousand long rollouts with hidden states would be gigabytes."""
OUTSTANDING = 2
"""Slices asked of a replica at one time, so that one is made while another travels."""


@dataclass(frozen=True)
class Wanted:
    """What is asked about every response token beside log q; `step` closes all earlier ones."""

    step: int
    topk: int = 0
    entropy: bool = True
    hidden: bool = False


@dataclass(frozen=True, eq=False)
class Question:
    """One rollout and the ids int32 [R, K'] whose log q is asked; None: none."""

    request: ScoreRequest
    at_ids: np.ndarray | None = None

    @property
    def item(self) -> CollectItem:
        """As a replica takes it."""
        return self.request.key, self.request.prompt_ids, self.request.response_ids, self.at_ids

    def open(self, answer: bytes | str) -> TeacherScore:
        """The decoded answer. Raises ValueError where scoring failed, or it answers something else than this."""
        if isinstance(answer, str):
            raise ValueError(answer)
        key, checksum, score = decode(answer)
        asked = self.request
        if (key, checksum, score.length) != (asked.key, asked.checksum, len(asked.response_ids)):
            raise ValueError(
                f"the teacher answered {key!r} (checksum {checksum:08x}, {score.length} tokens) to the request "
                f"{asked.key!r} (checksum {asked.checksum:08x}, {len(asked.response_ids)} tokens)"
            )
        return score

    def missing(self, wanted: Wanted, hidden_size: int, hidden_dtype: torch.dtype) -> TeacherScore:
        """A score without a single value, of the fields that were asked for."""
        at_ids = 0 if self.at_ids is None else self.at_ids.shape[1]
        length = len(self.request.response_ids)
        return TeacherScore.missing(length, wanted.topk, at_ids, wanted.entropy, hidden_size, hidden_dtype)

    def reply_bytes(self, wanted: Wanted, hidden_bytes: int) -> int:
        """About what its answer weighs; `hidden_bytes` per token where they are asked for."""
        at_ids = 0 if self.at_ids is None else self.at_ids.shape[1]
        per_token = 9 + 7 * wanted.topk + 4 * at_ids + hidden_bytes * wanted.hidden
        return per_token * len(self.request.response_ids)


def slices(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Keys of `sizes` in order, cut where the sum would pass `limit`; a larger one goes alone."""
    found: list[list[int]] = []
    total = 0
    for key, size in sizes.items():
        if not found or total + size > limit:
            found.append([])
            total = 0
        found[-1].append(key)
        total += size
    return found


@dataclass(eq=False)
class Gather:
    """One round of questions to several replicas at once.

    `scores` by question index; `failed`: why a rollout's answer cannot be used; `lost`: why a replica gave none.
    """

    replicas: Sequence[ActorHandle]
    wanted: Wanted
    timeout_s: float
    scores: dict[int, TeacherScore] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lost: dict[int, BaseException] = field(default_factory=dict)

    def run(self, groups: Mapping[int, Sequence[int]], questions: Sequence[Question], hidden_bytes: int) -> None:
        """Asks `groups[replica]` of each replica, and returns when all have answered or are lost.

        A replica that says nothing for `timeout_s` seconds is lost. Raises what a replica raises, if it lives.
        """
        self.questions = questions
        self.left = {
            replica: deque(slices({i: questions[i].reply_bytes(self.wanted, hidden_bytes) for i in group}, REPLY_BYTES))
            for replica, group in groups.items()
        }
        self.waiting: dict[Any, tuple[int, list[int]]] = {}
        self.heard = dict.fromkeys(groups, time.monotonic())
        for replica in list(groups) * OUTSTANDING:
            self._send(replica)
        while self.waiting:
            first = min(self.heard[replica] for replica, _ in self.waiting.values())
            ready, _ = ray.wait(list(self.waiting), timeout=max(0.0, first + self.timeout_s - time.monotonic()))
            for ref in ready:
                self._take(ref, *self.waiting.pop(ref))
            if not ready:
                self._give_up_silent()

    def _send(self, replica: int) -> None:
        if self.left[replica]:
            indexes = self.left[replica].popleft()
            wanted, items = self.wanted, [self.questions[index].item for index in indexes]
            ref: Any = self.replicas[replica].collect.remote(
                items, wanted.step, wanted.topk, wanted.entropy, wanted.hidden
            )
            self.waiting[ref] = (replica, indexes)

    def _take(self, ref: Any, replica: int, indexes: list[int]) -> None:
        """Opens a slice's answers, and asks for the next slice."""
        try:
            answers: Any = ray.get(ref)
        except LOST as error:
            return self._lose(replica, error)
        for index, answer in zip(indexes, answers, strict=True):
            try:
                self.scores[index] = self.questions[index].open(answer)
            except ValueError as error:
                self.failed[index] = str(error)
        self.heard[replica] = time.monotonic()
        self._send(replica)

    def _lose(self, replica: int, error: BaseException) -> None:
        self.lost[replica] = error
        self.left[replica].clear()
        self.waiting = {ref: sent for ref, sent in self.waiting.items() if sent[0] != replica}

    def _give_up_silent(self) -> None:
        now = time.monotonic()
        for replica in {replica for replica, _ in self.waiting.values()}:
            if now - self.heard[replica] >= self.timeout_s:
                self._lose(replica, GetTimeoutError(f"no answer for {self.timeout_s:g} s (opd.teacher.timeout_s)"))
