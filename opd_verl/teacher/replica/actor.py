"""One teacher replica: a background thread scores submitted rollouts, and callers collect the scores.

A plain class; `TeacherPool` makes it a Ray actor whose `submit`, `ping`, `stats` and `lm_head` run
beside a waiting `collect`.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace

import numpy as np
import torch
from ray.actor import ActorHandle

from opd_verl.fused.head import LMHead
from opd_verl.teacher.replica.device import see_own_gpus_only
from opd_verl.teacher.replica.followers import end, lead
from opd_verl.teacher.replica.load import load_scorer, server_scorer
from opd_verl.teacher.replica.store import Job, JobStore
from opd_verl.teacher.score import CollectSpec, ScoreRequest, TeacherScore
from opd_verl.teacher.scoring.offload import HostWeights, Visits
from opd_verl.teacher.scoring.reader import OutOfStepError, default_device
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.server_scorer import ONLY_LOG_PROBS, ServerLostError, ServerScorer
from opd_verl.teacher.scoring.state import RolloutState
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.wire import encode

logger = logging.getLogger(__name__)

SubmitItem = tuple[str, np.ndarray, np.ndarray]
"""(key, prompt_ids int32 [P], response_ids int32 [R])"""
CollectItem = tuple[str, np.ndarray, np.ndarray, np.ndarray | None]
"""SubmitItem and at_ids int32 [R, K'] or None"""


class ScoringError(RuntimeError):
    """The forward pass of one rollout failed; the message says how."""


class TeacherActor:
    """Scores rollouts in the background. The constructor loads the model, and passes on every error of the load.

    `followers`: Ray's options for the actors that hold the other shards (`opd_verl.teacher.replica.followers`).
    `server`: one of verl's inference servers, which then scores for this actor (`opd_verl.teacher.client.servers`).
    """

    def __init__(
        self,
        settings: TeacherSettings,
        followers: Sequence[Mapping[str, object]] = (),
        server: ActorHandle | None = None,
    ) -> None:
        self.settings, teacher = settings, settings.teacher
        self.scorer: Scorer | ServerScorer
        see_own_gpus_only()
        if server is not None:
            self.scorer = server_scorer(settings, server)
        else:
            self.scorer = load_scorer(settings) if teacher.shards == 1 else lead(settings, followers)
        self.store = JobStore(settings.max_state_bytes)
        self.wake = threading.Condition()  # guards the store, the visits and all counters below
        self.scoring = False
        resting = HostWeights(self.model.model, settings.device or default_device()) if teacher.colocate else None
        self.visits, self.probed = Visits(self.wake, resting, lambda: self.scoring), not teacher.colocate
        self.tokens_scored, self.seconds_busy, self.batches = 0, 0.0, 0
        self.rollouts_asked, self.rollouts_ready, self.collects = 0, 0, 0
        threading.Thread(target=self._loop, name="teacher-scorer", daemon=True).start()

    def submit(self, requests: Sequence[SubmitItem], step: int) -> int:
        """Queues rollouts that are not known yet, and returns at once with the queue's length.

        A known key with the same tokens is left alone; with other tokens it is replaced. The queue takes at most
        `max_queued` rollouts, and none where `early` is false: `collect` asks again for rollouts turned away.
        Raises ValueError as `Scorer.check` does.
        """
        teacher, asked = self.settings.teacher, [self._checked(ScoreRequest(*item)) for item in requests]
        with self.wake:
            room = teacher.max_queued - len(self.store.queued) if teacher.early else 0
            for request in asked[: max(0, room)]:
                self.store.add(request, step, closer=self.settings.looks(step))
            self.wake.notify_all()
            return len(self.store.queued)

    def collect(self, requests: Sequence[CollectItem], spec: CollectSpec) -> list[bytes | str]:
        """Encoded scores in the order of `requests`. Queues unknown rollouts, and waits for all that lack a score.

        Forgets the rollouts of steps before `spec.step`. A colocated teacher scores only while such a call waits. Each
        score has the values of `spec`, and log-probs at the request's at_ids if given; where scoring failed, a text
        says why in place of the score.
        Raises ValueError for requests that cannot be answered, LookupError for rollouts that another call dropped.
        """
        closer = self.settings.looks(spec.step)
        self.settings.check(spec, any(item[3] is not None for item in requests))
        asked = [self._checked(ScoreRequest(*item[:3])) for item in requests]
        waiting: dict[Future[RolloutState], list[int]] = {}
        with self.wake:
            self.collects += 1
            # Without `early`, rollouts of two calls never share a batch: batches then do not depend on timing.
            group = 0 if self.settings.teacher.early else self.collects
            for index, request in enumerate(asked):
                waiting.setdefault(self.store.add(request, spec.step, group, closer).future, []).append(index)
            self.rollouts_asked += len(asked)
            self.rollouts_ready += sum(len(places) for future, places in waiting.items() if future.done())
            self.store.drop_before(spec.step)
            self.wake.notify_all()
        answers: list[bytes | str] = [""] * len(asked)
        with self.visits.visit():
            if not self.probed:
                self.model.probe()
                self.probed = True
            # Answered in the order of scoring, and each future is let go: a state that the store evicts is then freed.
            for future in as_completed(tuple(waiting)):
                for index in waiting.pop(future):
                    try:
                        score = self._score(future.result(), requests[index][3], spec)
                    except ScoringError as error:
                        answers[index] = f"{asked[index].key}: {error}"
                    else:
                        answers[index] = encode(score, asked[index].key, asked[index].checksum)
        return answers

    def stats(self) -> dict[str, float]:
        """Counts since the start: response tokens, busy seconds, batches, rollouts asked for, and how many of these
        were scored before they were asked for. Present values: rollouts queued or running, bytes of states."""
        with self.wake:
            return {
                "tokens_scored": self.tokens_scored,
                "seconds_busy": self.seconds_busy,
                "batches": self.batches,
                "rollouts_asked": self.rollouts_asked,
                "rollouts_ready": self.rollouts_ready,
                "queue_length": len(self.store.queued) + len(self.store.running),
                "state_bytes": self.store.nbytes,
            }

    def ping(self) -> int:
        """The process id; an answer means the model is loaded."""
        return os.getpid()

    def reload(self, snapshot: str) -> None:
        """Takes the weights of a snapshot's folder, once no forward pass runs; forgets scores of the old weights."""
        with self.wake:
            self.store.drop_all("the teacher takes new weights")
            self.wake.wait_for(lambda: self.visits.over)
            self.model.reader.take(snapshot)

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, in the model's dtype. Another process forms q_t from it and hidden states.

        Its vocab_limit rows are copied: pickling a view would send the model's whole matrix.
        """
        head = self.model.head
        bias = None if head.bias is None else head.bias.to("cpu", copy=True)
        return replace(head, weight=head.weight.to("cpu", copy=True), bias=bias)

    @property
    def model(self) -> Scorer:
        """The scorer with a model in this process. Raises ValueError where an inference server holds the model."""
        if isinstance(self.scorer, ServerScorer):
            raise ValueError(ONLY_LOG_PROBS)
        return self.scorer

    def _checked(self, request: ScoreRequest) -> ScoreRequest:
        self.scorer.check(request)
        return request

    def _score(self, state: RolloutState, at_ids: np.ndarray | None, spec: CollectSpec) -> TeacherScore:
        # np.array copies: Ray hands out arrays in its shared memory, which are read-only; torch needs writable ones.
        at = None if at_ids is None else self.model.log_q_at(state, torch.from_numpy(np.array(at_ids)))
        return state.answer(spec, at, getattr(torch, self.settings.teacher.wire_dtype))

    def _loop(self) -> None:
        try:
            while True:
                self._next()
        except Exception as error:  # without its thread the replica would be silent for `timeout_s`
            logger.exception("the teacher's thread failed")
            end(error)

    def _next(self) -> None:
        """Waits for queued rollouts, and scores one batch of them."""
        with self.wake:
            self.wake.wait_for(lambda: self.store.queued and self.visits.may_read)
            batch = self._next_batch()
            self.store.start(batch)
            self.scoring = True
        self._run(batch)

    def _next_batch(self) -> list[Job]:
        """The longest queued requests that fit the budget. Batches are made anew each time: late arrivals join."""
        jobs = self.store.next_group()
        return [jobs[index] for index in self.scorer.batches([job.request for job in jobs])[0]]

    def _run(self, batch: list[Job]) -> None:
        """Scores one batch. An error reaches every caller that waits for the batch, and the loop lives on."""
        begin = time.perf_counter()
        states = self._attempt(batch)
        with self.wake:
            self.scoring = False
            self.wake.notify_all()
            self.seconds_busy += time.perf_counter() - begin
            self.batches += 1
            for job, state in zip(batch, states, strict=True):
                if isinstance(state, ScoringError):
                    self.store.fail(job, state)
                else:
                    self.tokens_scored += len(job.request.response_ids)
                    self.store.finish(job, state)

    def _attempt(self, batch: list[Job]) -> list["RolloutState | ScoringError"]:
        """One forward pass. A failed batch is halved: too large a batch then fits; a bad rollout fails alone."""
        settings = self.settings
        topk = max(settings.topk, settings.look_topk * any(job.closer for job in batch))
        try:
            states = self.scorer.score_batch([job.request for job in batch], topk)
        except OutOfStepError as error:
            end(error)
        except ServerLostError as error:
            return [ScoringError(f"the inference server is lost: {error}")] * len(batch)
        except Exception as error:
            logger.exception("teacher failed on a batch of %d rollouts", len(batch))
            failure = ScoringError(f"{type(error).__name__}: {error}")
        else:
            keep = [settings.keep_hidden or job.closer for job in batch]
            return [state.kept(hidden, settings.teacher.colocate) for state, hidden in zip(states, keep, strict=True)]
        if len(batch) == 1:
            return [failure]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the failed batch would fragment the memory of the next one
        half = len(batch) // 2
        return self._attempt(batch[:half]) + self._attempt(batch[half:])
