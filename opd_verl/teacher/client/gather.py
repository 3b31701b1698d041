"""Asks replicas for scores in slices of bounded size, and notices replicas that die, fall silent or answer nonsense.

No model code and no policy: `TeacherPool` decides what to do about a lost replica or a failed rollout.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from opd_verl.teacher.replica.actor import CollectItem
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.wire import decode

LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""Errors of a replica that is gone or silent. Any other error of a replica is a bug or a bad setting: it propagates."""
REPLY_BYTES = 64 << 20
"""Approximate limit of one answer: with hidden states, a thousand long rollouts are gigabytes, which Ray would hold in
its object store at one time."""
OUTSTANDING = 2
"""Slices that a replica is asked for at one time: it computes one while the other travels."""


@dataclass(frozen=True, eq=False)
class Question:
    """One rollout, and the ids int32 [R, K'] whose log q is asked; None: no ids."""

    request: ScoreRequest
    at_ids: np.ndarray | None = None

    @property
    def item(self) -> CollectItem:
        """The question in the form that `TeacherActor.collect` takes."""
        return self.request.key, self.request.prompt_ids, self.request.response_ids, self.at_ids

    @property
    def id_width(self) -> int:
        """Number of ids asked for at each token, K'."""
        return 0 if self.at_ids is None else self.at_ids.shape[1]

    def open(self, answer: bytes | str) -> TeacherScore:
        """The decoded answer. Raises ValueError where scoring failed, or where the answer is to another question."""
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

    def missing(self, spec: CollectSpec, hidden_size: int, hidden_dtype: torch.dtype) -> TeacherScore:
        """A score with the fields that were asked for and no valid value."""
        length = len(self.request.response_ids)
        return TeacherScore.missing(length, spec.topk, self.id_width, spec.entropy, hidden_size, hidden_dtype)

    def reply_bytes(self, spec: CollectSpec, hidden_bytes: int) -> int:
        """Approximate size of the answer; `hidden_bytes`: bytes of one token's hidden state."""
        # log q, entropy and a validity bit; a top-k id has 3 bytes and its log-prob 4, as if none were f16.
        per_token = 9 + 7 * spec.topk + 4 * self.id_width + hidden_bytes * spec.hidden
        return per_token * len(self.request.response_ids)


def slices(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Keys of `sizes` in order, cut where the sum would pass `limit`; a larger item goes alone."""
    cut: list[list[int]] = []
    total = 0
    for key, size in sizes.items():
        if not cut or total + size > limit:
            cut.append([])
            total = 0
        cut[-1].append(key)
        total += size
    return cut


@dataclass(eq=False)
class Gather:
    """One round of questions to several replicas at once.

    `scores` by question index; `failed`: why a rollout's answer cannot be used; `lost`: why a replica gave no answer.
    """

    replicas: Sequence[ActorHandle]
    spec: CollectSpec
    timeout_s: float
    scores: dict[int, TeacherScore] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lost: dict[int, BaseException] = field(default_factory=dict)

    def run(self, groups: Mapping[int, Sequence[int]], questions: Sequence[Question], hidden_bytes: int) -> None:
        """Asks `groups[replica]` of each replica, and returns when all have answered or are lost.

        A replica that says nothing for `timeout_s` seconds is lost. Raises the error of a replica that lives and fails.
        """
        self.questions = questions
        self.left = {
            replica: deque(slices({i: questions[i].reply_bytes(self.spec, hidden_bytes) for i in group}, REPLY_BYTES))
            for replica, group in groups.items()
        }
        self.waiting: dict[ray.ObjectRef, tuple[int, list[int]]] = {}
        self.heard = dict.fromkeys(groups, time.monotonic())
        # All replicas get their first slice before any gets its second, so that they all start at the same time.
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
            items = [self.questions[index].item for index in indexes]
            ref = self.replicas[replica].collect.remote(items, self.spec)
            self.waiting[ref] = (replica, indexes)

    def _take(self, ref: ray.ObjectRef, replica: int, indexes: list[int]) -> None:
        """Opens a slice's answers, and asks for the next slice."""
        try:
            answers: Sequence[bytes | str] = ray.get(ref)
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
