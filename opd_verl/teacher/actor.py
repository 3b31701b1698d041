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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.teacher.batching import fed_tokens, plan_batches
from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.scorer import RolloutState, Scorer
from opd_verl.teacher.store import Job, JobStore
from opd_verl.teacher.wire import encode

logger = logging.getLogger(__name__)

SubmitItem = tuple[str, np.ndarray, np.ndarray]
"""(key, prompt_ids int32 [P], response_ids int32 [R])"""
CollectItem = tuple[str, np.ndarray, np.ndarray, np.ndarray | None]
"""SubmitItem and at_ids int32 [R, K'] or None"""


@dataclass(frozen=True)
class TeacherSettings:
    """How a replica loads and runs the teacher; the model's path is given beside it."""

    vocab_limit: int | None = None
    """Ids 0..vocab_limit-1 are normalised over; None: len(tokenizer)."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16, or auto (the checkpoint's own)."""
    device: str | None = None
    """None: CUDA if the actor sees a GPU, else CPU."""
    attn_implementation: str = "sdpa"
    trust_remote_code: bool = False
    temperature: float = 1.0
    """The rollout temperature; teacher logits are divided by it."""
    max_tokens_per_batch: int = 16384
    """Padded tokens per forward pass."""
    chunk_rows: int = 1024
    """Rows per pass of the LM head; chunk_rows x vocabulary x 4 bytes are alive, twice. On a CPU 128 is 1.5x faster."""
    topk: int = 0
    """Teacher top-k computed with every forward pass; the most that a collect can ask for."""
    wire_dtype: str = "float16"
    """Of top-k and at-ids log-probs on the wire; the sampled token's are always float32."""
    keep_hidden: bool = True
    """Keeps the last hidden states, for log-probs at ids named later and to hand them out; without, 12 bytes per token
    are kept."""
    max_state_bytes: int = 2 << 30
    """Hidden states kept for late questions; older ones are recomputed when asked for."""

    def __post_init__(self) -> None:
        if self.wire_dtype not in ("float16", "float32"):
            raise ValueError(f"wire_dtype={self.wire_dtype!r}; choose float16 or float32 (bf16 ruins the reward)")
        if self.topk < 0:
            raise ValueError(f"topk={self.topk} must not be negative")


class TeacherActor:
    """Scores rollouts in the background. Raises at construction whatever loading the model raises."""

    def __init__(self, model_path: str, settings: TeacherSettings | Mapping[str, Any]) -> None:
        self.settings = s = settings if isinstance(settings, TeacherSettings) else TeacherSettings(**settings)
        self.scorer = Scorer.from_pretrained(
            model_path,
            vocab_limit=s.vocab_limit,
            dtype=s.dtype,
            device=s.device,
            attn_implementation=s.attn_implementation,
            trust_remote_code=s.trust_remote_code,
            temperature=s.temperature,
            max_tokens_per_batch=s.max_tokens_per_batch,
            chunk_rows=s.chunk_rows,
        )
        self.store = JobStore(s.max_state_bytes)
        self.wake = threading.Condition()
        self.tokens_scored, self.seconds_busy, self.batches = 0, 0.0, 0
        self.rollouts_asked, self.rollouts_ready = 0, 0
        threading.Thread(target=self._loop, name="teacher-scorer", daemon=True).start()

    def submit(self, requests: Sequence[SubmitItem], step: int) -> int:
        """Queues what is not known yet and returns at once with the queue's length.

        A known key with the same tokens is left alone; with other tokens it is replaced. ValueError: `Scorer.check`.
        """
        asked = [self._checked(ScoreRequest(*item)) for item in requests]
        with self.wake:
            for request in asked:
                self.store.add(request, step)
            self.wake.notify_all()
            return len(self.store.queued)

    def collect(
        self,
        requests: Sequence[CollectItem],
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[bytes]:
        """Encoded scores in the order of `requests`, waiting for those not scored yet and queueing those not known.

        Closes all steps before `step`. Per request: log-probs at its at_ids if given; top-k, entropy and hidden
        states if asked.
        Raises the exception of a scoring that failed, and ValueError for requests that cannot be answered.
        """
        self._check_settings(topk, at_ids=any(item[3] is not None for item in requests), hidden=hidden)
        asked = [self._checked(ScoreRequest(*item[:3])) for item in requests]
        waiting: dict[Future[RolloutState], list[int]] = {}
        with self.wake:
            for index, request in enumerate(asked):
                waiting.setdefault(self.store.add(request, step).future, []).append(index)
            self.rollouts_asked += len(asked)
            self.rollouts_ready += sum(len(places) for future, places in waiting.items() if future.done())
            self.store.drop_before(step)
            self.wake.notify_all()
        answers = [b""] * len(asked)
        for future in as_completed(tuple(waiting)):  # answered as they come: evicted states are not held back here
            for index in waiting.pop(future):
                score = self._score(future.result(), requests[index][3], topk, entropy, hidden)
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

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, in the model's dtype: with `hidden` it gives q_t in another process.

        Its vocab_limit rows are copied: a view would drag the model's whole matrix along.
        """
        head = self.scorer.head
        bias = None if head.bias is None else head.bias.to("cpu", copy=True)
        return replace(head, weight=head.weight.to("cpu", copy=True), bias=bias)

    def _check_settings(self, topk: int, at_ids: bool, hidden: bool) -> None:
        """Raises ValueError for what this replica's settings leave out."""
        if topk > self.settings.topk:
            raise ValueError(f"top-{topk} asked of a teacher that keeps top-{self.settings.topk}; raise its `topk`")
        if not self.settings.keep_hidden and (at_ids or hidden):
            what = "hidden states" if hidden else "log-probs at ids"
            raise ValueError(f"{what} asked of a teacher that keeps no hidden states; set its `keep_hidden`")

    def _checked(self, request: ScoreRequest) -> ScoreRequest:
        self.scorer.check(request)
        return request

    def _score(
        self, state: RolloutState, at_ids: np.ndarray | None, topk: int, entropy: bool, hidden: bool
    ) -> TeacherScore:
        at = None if at_ids is None else self.scorer.log_q_at(state, torch.from_numpy(np.array(at_ids)))
        return TeacherScore(
            log_q=state.log_q,
            valid=torch.ones(len(state.log_q), dtype=torch.bool),
            entropy=state.entropy if entropy else None,
            topk_ids=state.topk_ids[:, :topk] if topk and state.topk_ids is not None else None,
            topk_log_q=self._wire(state.topk_log_q[:, :topk]) if topk and state.topk_log_q is not None else None,
            at_ids_log_q=None if at is None else self._wire(at),
            hidden=state.hidden.cpu() if hidden else None,
        )

    def _wire(self, values: Tensor) -> Tensor:
        return values.half() if self.settings.wire_dtype == "float16" else values

    def _loop(self) -> None:
        while True:
            with self.wake:
                self.wake.wait_for(lambda: self.store.queued)
                batch = self._next_batch()
                self.store.start(batch)
            self._run(batch)
            del batch  # the last batch's states must not outlive their eviction while the queue is empty

    def _next_batch(self) -> list[Job]:
        """The longest queued requests that fit the budget; chosen anew each time, so that late arrivals join."""
        jobs = list(self.store.queued.values())
        lengths = [fed_tokens(job.request) for job in jobs]
        return [jobs[index] for index in plan_batches(lengths, self.scorer.max_tokens_per_batch)[0]]

    def _run(self, batch: list[Job]) -> None:
        """Scores one batch; whatever goes wrong reaches everyone who waits for it, and the loop lives on."""
        begin = time.perf_counter()
        try:
            states = self.scorer.score_batch([job.request for job in batch], self.settings.topk)
            if not self.settings.keep_hidden:
                states = [replace(state, hidden=state.hidden[:0].clone()) for state in states]
        except Exception as error:
            logger.exception("teacher failed on a batch of %d rollouts", len(batch))
            with self.wake:
                for job in batch:
                    self.store.fail(job, error)
            return
        with self.wake:
            self.tokens_scored += sum(len(job.request.response_ids) for job in batch)
            self.seconds_busy += time.perf_counter() - begin
            self.batches += 1
            for job, state in zip(batch, states, strict=True):
                self.store.finish(job, state)
