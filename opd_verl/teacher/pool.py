"""All teacher replicas over Ray: start or connect, route by prompt, gather with one retry. No model code here."""

import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, ObjectLostError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from opd_verl.fused.head import LMHead
from opd_verl.teacher.actor import CollectItem, TeacherActor, TeacherSettings
from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.wire import decode

logger = logging.getLogger(__name__)

LOST = (RayActorError, GetTimeoutError, ObjectLostError)
"""The replica is gone or silent. Anything else that it raises is a bug or a bad setting, and propagates."""
CONTROL, COLLECTS = "control", 16
"""One thread for submit, ping, stats and lm_head, so that they return beside up to 16 waiting collects."""
POLL_SECONDS = 0.2
NO_HIDDEN = (0, torch.float32)
"""Width and dtype of hidden states that nobody asked for or nobody has seen yet."""


class TeacherPool:
    """Named teacher actors; any process of the Ray job can `connect`. A lost submission costs time, never a score."""

    def __init__(self, replicas: Sequence[ActorHandle], name_prefix: str, timeout_s: float = 1800.0) -> None:
        self.replicas = list(replicas)
        self.names = [f"{name_prefix}_{index}" for index in range(len(self.replicas))]
        self.timeout_s = timeout_s
        self.hidden_like = NO_HIDDEN

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
    ) -> Self:
        """Creates the actors, one per (placement group, bundle index) if those are given, and waits until they loaded.

        The actors live as long as a handle of theirs. `load_timeout_s` bounds the load (and
        download), `timeout_s` each attempt of a `collect`.
        Raises ValueError for a replica count that does not fit; RuntimeError with the actor's cause if a load fails.
        """
        if replicas < 1 or (placement_groups is not None and len(placement_groups) != replicas):
            raise ValueError(f"{replicas} teacher replicas on {placement_groups}: one (group, bundle index) for each")
        actor_class: Any = ray.remote(concurrency_groups={CONTROL: 1})(TeacherActor)  # pyright: ignore[reportCallIssue]
        shared = {"num_gpus": num_gpus, "num_cpus": num_cpus, "max_concurrency": COLLECTS}
        shared |= {"max_restarts": -1, "max_task_retries": 0, "runtime_env": {"env_vars": dict(env_vars or {})}}
        handles = []
        for index in range(replicas):
            place = {} if placement_groups is None else _placement(*placement_groups[index])
            options = actor_class.options(name=f"{name_prefix}_{index}", **shared, **place)
            handles.append(options.remote(model_path, settings))
        pool = cls(handles, name_prefix, timeout_s)
        pool._await_load(model_path, load_timeout_s)
        return pool

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
        _control(self.replicas[self.replica_of(request.key)].submit).remote([item], step)

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

        Requests of a lost replica are sent once more, to the next one; if that is lost too, their tokens come back
        invalid (NaN, `valid` False), with a warning. Their hidden states have the width and dtype of any answer that
        this pool ever got; before its first one, when no token of the batch is valid, `hidden` is None.
        Raises ValueError for an answer whose key or tokens differ from the request's, and whatever the scoring itself
        raised.
        """
        items = [_collect_item(r, None if at_ids is None else at_ids[i]) for i, r in enumerate(requests)]
        scores: dict[int, TeacherScore] = {}
        for attempt in range(2):
            todo = [index for index in range(len(items)) if index not in scores]
            scores.update(self._attempt(items, requests, todo, attempt, (step, topk, entropy, hidden)))
        answered = [score.hidden for score in scores.values() if score.hidden is not None]
        if answered:
            self.hidden_like = (answered[0].shape[1], answered[0].dtype)
        like = self.hidden_like if hidden else NO_HIDDEN
        return [scores.get(index) or _missing(item, topk, entropy, like) for index, item in enumerate(items)]

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, from the first replica that answers; all hold the same.

        A replica that is being restarted is waited for, up to `timeout_s`. Raises RuntimeError if none answers.
        """
        for replica, handle in enumerate(self.replicas):
            deadline = time.monotonic() + self.timeout_s
            self._await_alive(replica, deadline)
            try:
                return ray.get(_control(handle.lm_head).remote(), timeout=max(0.0, deadline - time.monotonic()))
            except LOST as error:
                logger.warning("teacher %s gave no LM head: %s", self.names[replica], error)
        raise RuntimeError(f"no LM head from any of the teacher's replicas {self.names}; see the warnings above")

    def stats(self) -> dict[str, float]:
        """`TeacherActor.stats` summed over the replicas; a lost replica counts nothing."""
        total: dict[str, float] = {}
        for replica in self.replicas:
            try:
                found: Any = ray.get(_control(replica.stats).remote(), timeout=self.timeout_s)
            except LOST:
                continue
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _attempt(
        self,
        items: Sequence[CollectItem],
        requests: Sequence[ScoreRequest],
        todo: Sequence[int],
        attempt: int,
        options: tuple[int, int, bool, bool],
    ) -> dict[int, TeacherScore]:
        """Asks all replicas at once, `attempt` places after each request's own; the scores that came back, by index.

        `options`: step, topk, entropy and hidden of `TeacherActor.collect`.
        """
        groups: dict[int, list[int]] = {}
        for index in todo:
            replica = (self.replica_of(requests[index].key) + attempt) % len(self.replicas)
            groups.setdefault(replica, []).append(index)
        deadline = time.monotonic() + self.timeout_s
        for replica in groups if attempt else ():
            self._await_alive(replica, deadline)
        sent = {
            replica: self.replicas[replica].collect.remote([items[i] for i in group], *options)
            for replica, group in groups.items()
        }
        scores: dict[int, TeacherScore] = {}
        for replica, group in groups.items():
            try:
                answers = ray.get(sent[replica], timeout=max(0.0, deadline - time.monotonic()))
            except LOST as error:
                fate = "their tokens are masked" if attempt else "asking the next replica"
                logger.warning("teacher %s lost %d rollouts, %s: %s", self.names[replica], len(group), fate, error)
                continue
            scores.update({i: _open(data, requests[i]) for i, data in zip(group, answers, strict=True)})
        return scores

    def _await_alive(self, replica: int, deadline: float) -> None:
        """Waits while Ray restarts the replica; one that is dead for good, or too slow, fails in the next call."""
        while time.monotonic() < deadline:
            try:
                ray.get(_control(self.replicas[replica].ping).remote(), timeout=deadline - time.monotonic())
                return
            except ActorUnavailableError:
                time.sleep(POLL_SECONDS)
            except LOST:
                return

    def _await_load(self, model_path: str, timeout_s: float) -> None:
        pings = [_control(handle.ping).remote() for handle in self.replicas]
        try:
            ray.get(pings, timeout=timeout_s)
        except LOST as error:
            for handle in self.replicas:
                ray.kill(handle)
            raise RuntimeError(f"teacher {model_path} did not load on {len(pings)} replicas: {error}") from error


def _placement(group: PlacementGroup, bundle: int) -> dict[str, PlacementGroupSchedulingStrategy]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}


def _control(method: Any) -> Any:
    return method.options(concurrency_group=CONTROL)


def _collect_item(request: ScoreRequest, at_ids: Any) -> CollectItem:
    ids = None if at_ids is None else np.asarray(at_ids, dtype=np.int32)
    return request.key, request.prompt_ids, request.response_ids, ids


def _missing(item: CollectItem, topk: int, entropy: bool, hidden_like: tuple[int, torch.dtype]) -> TeacherScore:
    """A score without a single value, of the fields that were asked for."""
    at_ids = 0 if item[3] is None else item[3].shape[1]
    return TeacherScore.missing(len(item[2]), topk, at_ids, entropy, *hidden_like)


def _open(data: bytes, request: ScoreRequest) -> TeacherScore:
    """The decoded answer, if it answers this very request."""
    key, checksum, score = decode(data)
    if (key, checksum, score.length) != (request.key, request.checksum, len(request.response_ids)):
        raise ValueError(
            f"the teacher answered {key!r} (checksum {checksum:08x}, {score.length} tokens) to the request "
            f"{request.key!r} (checksum {request.checksum:08x}, {len(request.response_ids)} tokens)"
        )
    return score
