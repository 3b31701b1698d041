"""All teacher replicas over Ray: route by prompt, gather, ask once more what is missing, restart what is broken."""

import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.placement_group import PlacementGroup

from opd_verl.fused.head import LMHead
from opd_verl.teacher.client.gather import LOST, Gather, Question, Wanted
from opd_verl.teacher.client.launch import await_load, control, launch
from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.settings import TeacherSettings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
NO_HIDDEN = (0, torch.float32)
"""Width and dtype of hidden states that nobody asked for or nobody has seen yet."""
UNKNOWN_HIDDEN_BYTES = 16384
"""Of a token, for the size of the first answers: a width of 8192 in bf16."""

MASKED = "their tokens are masked"
FATES = (("asking the next replica",) * 2, ("asking once more", MASKED), (MASKED, MASKED))
"""By attempt: what becomes of rollouts that a replica lost, and of those that it failed on."""


class TeacherPool:
    """Named teacher actors; any process of the Ray job can `connect`. A lost submission costs time, never a score."""

    def __init__(self, replicas: Sequence[ActorHandle], name_prefix: str, timeout_s: float = 1800.0) -> None:
        self.replicas = list(replicas)
        self.names = [f"{name_prefix}_{index}" for index in range(len(self.replicas))]
        self.timeout_s = timeout_s
        self.hidden_like = NO_HIDDEN
        self.retried, self.restarted = 0, 0
        self.reloaded = False
        self.keeps: object = None
        """What must live as long as the replicas do."""

    @classmethod
    def start(
        cls,
        model_path: str,
        settings: TeacherSettings | Mapping[str, Any],
        replicas: int,
        *,
        name_prefix: str = "opd_teacher",
        placement_groups: Sequence[tuple[PlacementGroup, int]] | None = None,
        num_gpus: float = 0.0,
        num_cpus: float = 1.0,
        env_vars: Mapping[str, str] | None = None,
        timeout_s: float = 1800.0,
        load_timeout_s: float = 1800.0,
        servers: Sequence[ActorHandle] = (),
    ) -> Self:
        """Creates the actors, one shard per (placement group, bundle index) if given, and waits until they loaded.

        The actors live as long as a handle of theirs. `load_timeout_s` bounds the load (and
        download), `timeout_s` each attempt of a `collect`. `servers`: inference servers, one for each replica.
        Raises ValueError for a replica count that does not fit; RuntimeError with the actor's cause if a load fails.
        """
        options = {"num_gpus": num_gpus, "num_cpus": num_cpus, "runtime_env": {"env_vars": dict(env_vars or {})}}
        handles = launch(model_path, settings, replicas, name_prefix, placement_groups, options, servers)
        await_load(handles, model_path, load_timeout_s)
        return cls(handles, name_prefix, timeout_s)

    @classmethod
    def connect(cls, name_prefix: str, replicas: int, timeout_s: float = 1800.0) -> Self:
        """The running actors by name. Raises Ray's ValueError if one does not exist in this job's namespace."""
        return cls([ray.get_actor(f"{name_prefix}_{index}") for index in range(replicas)], name_prefix, timeout_s)

    def replica_of(self, key: str) -> int:
        """All rollouts of a prompt (the key's part before the first "_") go to one replica."""
        return zlib.crc32(key.split("_")[0].encode()) % len(self.replicas)

    def submit(self, request: ScoreRequest, step: int) -> None:
        """Tells the replica to score the request, and returns without waiting. A failure shows up in `collect`."""
        item = (request.key, request.prompt_ids, request.response_ids)
        control(self.replicas[self.replica_of(request.key)].submit).remote([item], step)

    def collect(
        self,
        requests: Sequence[ScoreRequest],
        at_ids: Sequence[Any] | None,
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[TeacherScore]:
        """Scores in the order of `requests`; `at_ids`: per request integers [R, K'] (array or CPU tensor), or None.

        What a lost replica left open, what failed and what holds a NaN is asked once more, of the next replica; what
        that one lost too, of a third (or the first, restarted). What is then still missing comes back invalid (NaN,
        `valid` False), with a warning; its hidden states have the width and dtype of any answer that this pool ever
        got; before its first one, when no token of the batch is valid, `hidden` is None. Replicas that fell silent, or
        whose NaN another replica could mend, are restarted.
        Raises ValueError for a request that no teacher of this model can answer.
        """
        wanted = Wanted(step, topk, entropy, hidden)
        questions = [Question(r, _ids(None if at_ids is None else at_ids[i])) for i, r in enumerate(requests)]
        first = self._round(range(len(questions)), questions, wanted, 0)
        self._restart_silent(first)
        scores = dict(first.scores)
        if todo := [index for index in range(len(questions)) if not _whole(scores.get(index))]:
            self.retried += len(todo)
            self._restart_lone_nan(scores)
            second = self._again(todo, questions, wanted, 1, scores)
            self._restart_mended(first, second, questions)
            if todo := [index for index in todo if index not in scores and index not in second.failed]:
                self._again(todo, questions, wanted, 2, scores)
        answered = [score.hidden for score in scores.values() if score.hidden is not None]
        if answered:
            self.hidden_like = (answered[0].shape[1], answered[0].dtype)
        like = self.hidden_like if hidden else NO_HIDDEN
        return [scores.get(index) or asked.missing(wanted, *like) for index, asked in enumerate(questions)]

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, from the first replica that answers; all hold the same.

        A replica that is being restarted is waited for, up to `timeout_s`. Raises RuntimeError if none answers.
        """
        for replica, handle in enumerate(self.replicas):
            deadline = time.monotonic() + self.timeout_s
            self._await_alive(replica, deadline)
            try:
                return ray.get(control(handle.lm_head).remote(), timeout=max(0.0, deadline - time.monotonic()))
            except LOST as error:
                logger.warning("teacher %s gave no LM head: %s", self.names[replica], error)
        raise RuntimeError(f"no LM head from any of the teacher's replicas {self.names}; see the warnings above")

    def reload(self, snapshot: str) -> None:
        """All replicas take a snapshot's weights. One that is lost takes them when it restarts, from its pointer."""
        for replica, handle in enumerate(self.replicas):
            try:
                ray.get(control(handle.reload).remote(snapshot), timeout=self.timeout_s)
            except LOST as error:
                logger.warning("teacher %s did not take %s: %s", self.names[replica], snapshot, error)
                self._restart(replica, "it must not go on with the old weights")

    def stats(self) -> dict[str, float]:
        """`TeacherActor.stats` summed over the replicas (a lost one counts nothing), and this pool's own: rollouts
        asked for twice, replicas restarted."""
        total: dict[str, float] = {"rollouts_retried": self.retried, "replicas_restarted": self.restarted}
        for replica in self.replicas:
            try:
                found: Any = ray.get(control(replica.stats).remote(), timeout=self.timeout_s)
            except LOST:
                continue
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _again(
        self,
        todo: Sequence[int],
        questions: Sequence[Question],
        wanted: Wanted,
        attempt: int,
        scores: dict[int, TeacherScore],
    ) -> Gather:
        """One more round, whose answers go into `scores` where they are better."""
        gather = self._round(todo, questions, wanted, attempt)
        self._restart_silent(gather)
        scores.update({i: score for i, score in gather.scores.items() if i not in scores or _better(score, scores[i])})
        return gather

    def _round(self, todo: Sequence[int], questions: Sequence[Question], wanted: Wanted, attempt: int) -> Gather:
        """Asks all replicas at once, `attempt` places after each request's own."""
        groups: dict[int, list[int]] = {}
        for index in todo:
            replica = (self.replica_of(questions[index].request.key) + attempt) % len(self.replicas)
            groups.setdefault(replica, []).append(index)
        deadline = time.monotonic() + self.timeout_s
        for replica in groups if attempt else ():
            self._await_alive(replica, deadline)
        gather = Gather(self.replicas, wanted, self.timeout_s)
        gather.run(groups, questions, self.hidden_like[0] * self.hidden_like[1].itemsize or UNKNOWN_HIDDEN_BYTES)
        lost, failed = FATES[attempt]
        for replica, error in gather.lost.items():
            open_ = sum(index not in gather.scores for index in groups[replica])
            logger.warning("teacher %s lost %d rollouts, %s: %s", self.names[replica], open_, lost, error)
        if gather.failed:
            example = next(iter(gather.failed.values()))
            logger.warning("teacher failed on %d rollouts, %s; for example: %s", len(gather.failed), failed, example)
        return gather

    def _restart(self, replica: int, why: str) -> None:
        logger.warning("teacher %s is restarted: %s", self.names[replica], why)
        self.restarted += 1
        ray.kill(self.replicas[replica], no_restart=False)

    def _restart_silent(self, gather: Gather) -> None:
        """A replica that hangs would cost `timeout_s` in every step; one that is gone restarts by itself."""
        for replica, error in gather.lost.items():
            if isinstance(error, GetTimeoutError):
                self._restart(replica, str(error))

    def _restart_lone_nan(self, scores: Mapping[int, TeacherScore]) -> None:
        """The only replica gave NaN: loading it again may help. Tried once; NaN in the weights stays."""
        if len(self.replicas) == 1 and not self.reloaded and any(not score.valid.all() for score in scores.values()):
            self.reloaded = True
            self._restart(0, "it gave NaN, and there is no other replica to ask")

    def _restart_mended(self, first: Gather, second: Gather, questions: Sequence[Question]) -> None:
        """A replica is at fault where another one could score what it could not."""
        if len(self.replicas) == 1:
            return
        mended = {i for i, score in second.scores.items() if _better(score, first.scores.get(i))}
        wrong = {i for i in mended if i in first.scores or i in first.failed}
        for replica in sorted({self.replica_of(questions[i].request.key) for i in wrong}):
            self._restart(replica, "another replica scored what it could not")

    def _await_alive(self, replica: int, deadline: float) -> None:
        """Waits while Ray restarts the replica; one that is dead for good, or too slow, fails in the next call."""
        while time.monotonic() < deadline:
            try:
                ray.get(control(self.replicas[replica].ping).remote(), timeout=deadline - time.monotonic())
                return
            except ActorUnavailableError:
                time.sleep(POLL_SECONDS)
            except LOST:
                return


def _ids(at_ids: Any) -> np.ndarray | None:
    return None if at_ids is None else np.asarray(at_ids, dtype=np.int32)


def _whole(score: TeacherScore | None) -> bool:
    """Whether there is an answer, and each of its tokens is valid."""
    return score is not None and bool(score.valid.all())


def _better(second: TeacherScore | None, first: TeacherScore | None) -> bool:
    """Whether the second answer has more valid tokens than the first; no answer has none, not even of an empty one."""
    valid = [-1 if score is None else int(score.valid.sum()) for score in (first, second)]
    return valid[1] > valid[0]
