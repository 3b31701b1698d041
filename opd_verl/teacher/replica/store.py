"""Keeps track of rollouts that wait for a forward pass and of kept states: bookkeeping without threads or torch.

Not thread-safe: the actor calls it under its lock.
"""

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.state import RolloutState


@dataclass(eq=False)
class Job:
    """One request and the promise of its state. A caller that holds `future` has the state even after an eviction."""

    request: ScoreRequest
    checksum: int
    step: int
    group: int = 0
    """Jobs of different groups are never in one batch."""
    closer: bool = False
    """Whether the state also holds the top-k and hidden states that the diagnostics look at."""
    future: Future[RolloutState] = field(default_factory=Future)


class JobStore:
    """Jobs by key, in one of three places: `queued`, `running`, `done` (kept, oldest first, at most max_bytes)."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_state_bytes={max_bytes} must not be negative")
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.queued: dict[str, Job] = {}
        self.running: dict[str, Job] = {}
        self.done: OrderedDict[str, Job] = OrderedDict()

    def find(self, key: str) -> Job | None:
        """The job of this key: queued, running or done."""
        return self.queued.get(key) or self.running.get(key) or self.done.get(key)

    def add(self, request: ScoreRequest, step: int, group: int = 0, closer: bool = False) -> Job:
        """The job of this request, queued if it is new. A job with other tokens, or that keeps less, is replaced."""
        checksum, known = request.checksum, self.find(request.key)
        if known is not None and known.checksum == checksum and known.closer >= closer:
            known.step = max(known.step, step)
            return known
        if known is not None:
            reason = "a request with the same key and other tokens, or one that asks for more"
            self._drop(known, f"{request.key} was replaced by {reason}")
        job = self.queued[request.key] = Job(request, checksum, step, group, closer)
        return job

    def next_group(self) -> list[Job]:
        """The queued jobs in the group of the oldest job."""
        jobs = list(self.queued.values())
        return [job for job in jobs if job.group == jobs[0].group]

    def start(self, jobs: list[Job]) -> None:
        """Moves queued jobs to the running ones."""
        for job in jobs:
            self.running[job.request.key] = self.queued.pop(job.request.key)

    def finish(self, job: Job, state: RolloutState) -> None:
        """Fulfils the promise and keeps the state; evicts the oldest states while all states exceed max_bytes."""
        if self.running.get(job.request.key) is not job:  # replaced, or its step was closed
            return
        self.done[job.request.key] = self.running.pop(job.request.key)
        self.nbytes += state.nbytes
        job.future.set_result(state)
        while self.nbytes > self.max_bytes:
            self._release(next(iter(self.done.values())))

    def fail(self, job: Job, error: BaseException) -> None:
        """Hands the error to the waiting callers and forgets the job, so that the next request tries again."""
        if self.running.get(job.request.key) is job:
            del self.running[job.request.key]
            job.future.set_exception(error)

    def drop_before(self, step: int) -> None:
        """Forgets all jobs of earlier steps."""
        for jobs in (self.queued, self.running, self.done):
            for job in [job for job in jobs.values() if job.step < step]:
                self._drop(job, f"{job.request.key} belongs to step {job.step}, which a collect for step {step} closed")

    def drop_all(self, reason: str) -> None:
        """Forgets every job."""
        for jobs in (self.queued, self.running, self.done):
            for job in list(jobs.values()):
                self._drop(job, f"{job.request.key}: {reason}")

    def _drop(self, job: Job, reason: str) -> None:
        if job.future.done():
            return self._release(job)
        self.queued.pop(job.request.key, None)
        self.running.pop(job.request.key, None)
        job.future.set_exception(LookupError(reason))

    def _release(self, job: Job) -> None:
        del self.done[job.request.key]
        self.nbytes -= job.future.result().nbytes
