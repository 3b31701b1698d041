"""One teacher replica: a background thread scores what is submitted, callers collect what they need.

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
from typing import Any

import numpy as np
import torch

from opd_verl.fused.head import LMHead
from opd_verl.teacher.replica.device import see_own_gpus_only
from opd_verl.teacher.replica.followers import end, lead
from opd_verl.teacher.replica.load import load_scorer, server_scorer
from opd_verl.teacher.replica.store import Job, JobStore
from opd_verl.teacher.score import ScoreRequest, TeacherScore
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
    """Scores rollouts in the background. Raises at construction whatever loading the model raises.

    `followers`: Ray's options for the actors that hold the other shards (`opd_verl.teacher.replica.followers`).
    `server`: one of verl's inference servers, which then scores for this actor (`opd_verl.teacher.client.servers`).
    """

    def __init__(
        self,
        model_path: str,
        settings: TeacherSettings | Mapping[str, Any],
        followers: Sequence[Mapping[str, Any]] = (),
        server: Any = None,
    ) -> None:
        self.settings = s = settings if isinstance(settings, TeacherSettings) else TeacherSettings(**settings)
        self.scorer: Scorer | ServerScorer
        see_own_gpus_only()
        if server is not None:
            self.scorer = server_scorer(model_path, s, server)
        else:
            self.scorer = load_scorer(model_path, s) if s.shards == 1 else lead(model_path, s, followers)
        self.store = JobStore(s.max_state_bytes)
        self.wake = threading.Condition()
        self.scoring = False
        resting = HostWeights(self.model.model, s.device or default_device()) if s.colocate else None
        self.visits, self.probed = Visits(self.wake, resting, lambda: self.scoring), not s.colocate
        self.tokens_scored, self.seconds_busy, self.batches = 0, 0.0, 0
        self.rollouts_asked, self.rollouts_ready, self.collects = 0, 0, 0
        threading.Thread(target=self._loop, name="teacher-scorer", daemon=True).start()

    def submit(self, requests: Sequence[SubmitItem], step: int) -> int:
        """Queues what is not known yet and returns at once with the queue's length.

        A known key with the same tokens is left alone; with other tokens it is replaced. What finds `max_queued`
        rollouts waiting is turned away, and everything without `early`; `collect` asks for it again. ValueError:
        `Scorer.check`.
        """
        asked = [self._checked(ScoreRequest(*item)) for item in requests]
        with self.wake:
            room = self.settings.max_queued - len(self.store.queued) if self.settings.early else 0
            for request in asked[: max(0, room)]:
                self.store.add(request, step, closer=self.settings.looks(step))
            self.wake.notify_all()
            return len(self.store.queued)

    def collect(
        self,
        requests: Sequence[CollectItem],
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[bytes | str]:
        """Encoded scores in the order of `requests`, waiting for those not scored yet and queueing those not known.

        Closes all steps before `step`. A colocated teacher scores nothing before the first of these calls. Per
        request: log-probs at its at_ids if given; top-k, entropy and hidden states if asked; in place of a score that
        failed, why.
        Raises ValueError for requests that cannot be answered, LookupError for those dropped meanwhile.
        """
        closer = self.settings.looks(step)
        self.settings.check_wanted(topk, any(item[3] is not None for item in requests), hidden, closer)
        asked = [self._checked(ScoreRequest(*item[:3])) for item in requests]
        waiting: dict[Future[RolloutState], list[int]] = {}
        with self.wake:
            self.collects += 1
            group = 0 if self.settings.early else self.collects
            for index, request in enumerate(asked):
                waiting.setdefault(self.store.add(request, step, group, closer).future, []).append(index)
            self.rollouts_asked += len(asked)
            self.rollouts_ready += sum(len(places) for future, places in waiting.items() if future.done())
            self.store.drop_before(step)
            self.wake.notify_all()
        answers: list[bytes | str] = [""] * len(asked)
        with self.visits.one():
            if not self.probed:
                self.model.probe()
                self.probed = True
            for future in as_completed(tuple(waiting)):  # answered as they come: evicted states are not held back here
                for index in waiting.pop(future):
                    try:
                        score = self._score(future.result(), requests[index][3], topk, entropy, hidden)
                    except ScoringError as error:
                        answers[index] = f"{asked[index].key}: {error}"
                    else:
                        answers[index] = encode(score, asked[index].key, asked[index].checksum)
        return answers

    def stats(self) -> dict[str, float]:
        """Since the start: response tokens, busy seconds, batches, rollouts asked for, how many of those were scored by
        then. Now: rollouts queued or running, state bytes."""
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
        """Takes the weights of a snapshot's folder, once no forward pass runs; scores of the old ones are forgotten."""
        with self.wake:
            self.store.drop_all("the teacher takes new weights")
            self.wake.wait_for(lambda: self.visits.over)
            self.model.reader.take(snapshot)

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, in the model's dtype: with `hidden` it gives q_t in another process.

        Its vocab_limit rows are copied: a view would drag the model's whole matrix along.
        """
        head = self.model.head
        bias = None if head.bias is None else head.bias.to("cpu", copy=True)
        return replace(head, weight=head.weight.to("cpu", copy=True), bias=bias)

    @property
    def model(self) -> Scorer:
        """The scorer that holds the model here. Raises ValueError where a server does."""
        if isinstance(self.scorer, ServerScorer):
            raise ValueError(ONLY_LOG_PROBS)
        return self.scorer

    def _checked(self, request: ScoreRequest) -> ScoreRequest:
        self.scorer.check(request)
        return request

    def _score(
        self, state: RolloutState, at_ids: np.ndarray | None, topk: int, entropy: bool, hidden: bool
    ) -> TeacherScore:
        at = None if at_ids is None else self.model.log_q_at(state, torch.from_numpy(np.array(at_ids)))
        return state.answer(at, topk, entropy, hidden, getattr(torch, self.settings.wire_dtype))

    def _loop(self) -> None:
        try:
            while True:
                self._next()
        except Exception as error:  # without its thread the replica would be silent for `timeout_s`
            logger.exception("the teacher's thread failed")
            end(error)

    def _next(self) -> None:
        """Waits for work and does one batch of it."""
        with self.wake:
            self.wake.wait_for(lambda: self.store.queued and self.visits.may_read)
            batch = self._next_batch()
            self.store.start(batch)
            self.scoring = True
        self._run(batch)

    def _next_batch(self) -> list[Job]:
        """The longest queued requests that fit the budget; chosen anew each time, so that late arrivals join."""
        jobs = self.store.next_group()
        return [jobs[index] for index in self.scorer.plan([job.request for job in jobs])[0]]

    def _run(self, batch: list[Job]) -> None:
        """Scores one batch; whatever goes wrong reaches everyone who waits for it, and the loop lives on."""
        begin = time.perf_counter()
        found = self._attempt(batch)
        with self.wake:
            self.scoring = False
            self.wake.notify_all()
            self.seconds_busy += time.perf_counter() - begin
            self.batches += 1
            for job, state in zip(batch, found, strict=True):
                if isinstance(state, ScoringError):
                    self.store.fail(job, state)
                else:
                    self.tokens_scored += len(job.request.response_ids)
                    self.store.finish(job, state)

    def _attempt(self, batch: list[Job]) -> list["RolloutState | ScoringError"]:
        """One forward pass. A batch that fails is halved: what is too large then fits, what is bad fails alone."""
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
            return [state.kept(hidden, settings.colocate) for state, hidden in zip(states, keep, strict=True)]
        if len(batch) == 1:
            return [failure]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._attempt(batch[:half]) + self._attempt(batch[half:])
