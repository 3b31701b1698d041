"""All replicas of one teacher, over Ray: sends each prompt to its replica, gathers the scores, asks again for missing
ones, and restarts broken replicas.
"""

import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.placement_group import PlacementGroup

from opd_verl.fused.head import LMHead
from opd_verl.teacher.client.gather import LOST, Gather, Question
from opd_verl.teacher.client.replicas import await_load, control, make_replicas
from opd_verl.teacher.score import CollectSpec, IdRows, ScoreRequest, TeacherScore
from opd_verl.teacher.settings import TeacherSettings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
NO_HIDDEN = (0, torch.float32)
"""Width and dtype of hidden states that were not asked for, or that no answer has shown yet."""
UNKNOWN_HIDDEN_BYTES = 16384
"""Assumed size of one token's hidden state before the first answer shows it: a width of 8192 in bf16."""

MASKED = "their tokens are masked"
FATES = (("asking the next replica",) * 2, ("asking once more", MASKED), (MASKED, MASKED))
"""Per attempt: the fate of rollouts that a replica lost, and of rollouts that a replica failed on."""


class TeacherPool:
    """Named teacher actors; any process of the Ray job can `connect`. A lost submission costs time, never a score.

    `timeout_s`: seconds after which a replica that does not answer counts as lost.
    """

    def __init__(self, replicas: Sequence[ActorHandle], name_prefix: str, timeout_s: float = 1800.0) -> None:
        self.replicas = list(replicas)
        self.names = [f"{name_prefix}_{index}" for index in range(len(self.replicas))]
        self.timeout_s = timeout_s
        self.hidden_like = NO_HIDDEN
        self.retried, self.restarted = 0, 0
        self.reloaded = False
        self.keeps: object = None
        """An object that must live as long as the replicas: verl's manager of the inference servers."""

    @classmethod
    def start(
        cls,
        settings: TeacherSettings,
        replicas: int,
        *,
        name_prefix: str = "opd_teacher",
        placement_groups: Sequence[tuple[PlacementGroup, int]] | None = None,
        num_gpus: float = 0.0,
        num_cpus: float = 1.0,
        env_vars: Mapping[str, str] | None = None,
        servers: Sequence[ActorHandle] = (),
    ) -> Self:
        """Creates the actors, one shard per (placement group, bundle index) if given, and waits until they loaded.

        An actor lives as long as a handle to it exists. `settings.teacher.load_timeout_s` bounds the load (and
        download), `timeout_s` each attempt of a `collect`. `servers`: inference servers, one for each replica.
        Raises ValueError for a replica count that does not fit; RuntimeError with the actor's cause if a load fails.
        """
        options = {"num_gpus": num_gpus, "num_cpus": num_cpus, "runtime_env": {"env_vars": dict(env_vars or {})}}
        handles = make_replicas(settings, replicas, name_prefix, placement_groups, options, servers)
        await_load(handles, settings.teacher.path, settings.teacher.load_timeout_s)
        return cls(handles, name_prefix, settings.teacher.timeout_s)

    @classmethod
    def connect(cls, name_prefix: str, replicas: int, timeout_s: float = 1800.0) -> Self:
        """The running actors by name. Raises Ray's ValueError if one does not exist in this job's namespace."""
        return cls([ray.get_actor(f"{name_prefix}_{index}") for index in range(replicas)], name_prefix, timeout_s)

    def replica_of(self, key: str) -> int:
        """The replica of a prompt (the key's part before the first "_"): its rollouts can share one pass over it."""
        # crc32 and not hash(): every process must choose the same replica, and hash() of a string differs by process.
        return zlib.crc32(key.split("_")[0].encode()) % len(self.replicas)

    def submit(self, request: ScoreRequest, step: int) -> None:
        """Tells the replica to score the request, and returns without waiting. A failure shows up in `collect`."""
        item = (request.key, request.prompt_ids, request.response_ids)
        control(self.replicas[self.replica_of(request.key)].submit).remote([item], step)

    def collect(
        self, requests: Sequence[ScoreRequest], at_ids: Sequence[IdRows] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        """Scores in the order of `requests`; `at_ids`: the ids of each request whose log q is wanted; None: no ids.

        Rollouts that a replica lost, failed on or scored NaN go to the next replica. Rollouts that this replica loses
        too go to a third one (or the first, restarted). Rollouts that then still lack a score come back invalid (NaN,
        `valid` False), with a warning. Their hidden states have the width and dtype of earlier answers to this pool;
        if there was none, `hidden` is None, and no token of the batch is valid. Replicas that fell silent, or whose
        rollouts another replica could score, are restarted.
        Raises ValueError for a request that no teacher of this model can answer.
        """
        questions = [Question(r, None if at_ids is None else _int32(at_ids[i])) for i, r in enumerate(requests)]
        first = self._round(range(len(questions)), questions, spec, 0)
        self._restart_silent(first)
        scores = dict(first.scores)
        if todo := [index for index in range(len(questions)) if not _whole(scores.get(index))]:
            self.retried += len(todo)
            self._restart_lone_nan(scores)
            second = self._again(todo, questions, spec, 1, scores)
            self._restart_mended(first, second, questions)
            # A rollout that two replicas failed on is at fault itself. A third attempt helps only where replicas died.
            if todo := [index for index in todo if index not in scores and index not in second.failed]:
                self._again(todo, questions, spec, 2, scores)
        answered = [score.hidden for score in scores.values() if score.hidden is not None]
        if answered:
            self.hidden_like = (answered[0].shape[1], answered[0].dtype)
        like = self.hidden_like if spec.hidden else NO_HIDDEN
        return [scores.get(index) or asked.missing(spec, *like) for index, asked in enumerate(questions)]

    def lm_head(self) -> LMHead:
        """The LM head on the CPU, from the first replica that answers; all replicas hold the same head.

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
        """All replicas take a snapshot's weights. A lost replica reads the snapshot's pointer file when it restarts."""
        for replica, handle in enumerate(self.replicas):
            try:
                ray.get(control(handle.reload).remote(snapshot), timeout=self.timeout_s)
            except LOST as error:
                logger.warning("teacher %s did not take %s: %s", self.names[replica], snapshot, error)
                self._restart(replica, "it must not go on with the old weights")

    def stats(self) -> dict[str, float]:
        """`TeacherActor.stats` summed over the replicas that answer, and two counts of this pool: rollouts asked for
        twice, replicas restarted."""
        total: dict[str, float] = {"rollouts_retried": self.retried, "replicas_restarted": self.restarted}
        for replica in self.replicas:
            try:
                own: Mapping[str, float] = ray.get(control(replica.stats).remote(), timeout=self.timeout_s)
            except LOST:
                continue
            for name, value in own.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _again(
        self,
        todo: Sequence[int],
        questions: Sequence[Question],
        spec: CollectSpec,
        attempt: int,
        scores: dict[int, TeacherScore],
    ) -> Gather:
        """One more round; its answers replace those in `scores` that have fewer valid tokens."""
        gather = self._round(todo, questions, spec, attempt)
        self._restart_silent(gather)
        scores.update({i: score for i, score in gather.scores.items() if i not in scores or _better(score, scores[i])})
        return gather

    def _round(self, todo: Sequence[int], questions: Sequence[Question], spec: CollectSpec, attempt: int) -> Gather:
        """Asks all replicas at once. Each rollout goes to the replica `attempt` places after its prompt's replica."""
        groups: dict[int, list[int]] = {}
        for index in todo:
            replica = (self.replica_of(questions[index].request.key) + attempt) % len(self.replicas)
            groups.setdefault(replica, []).append(index)
        deadline = time.monotonic() + self.timeout_s
        for replica in groups if attempt else ():
            self._await_alive(replica, deadline)
        gather = Gather(self.replicas, spec, self.timeout_s)
        gather.run(groups, questions, self.hidden_like[0] * self.hidden_like[1].itemsize or UNKNOWN_HIDDEN_BYTES)
        lost, failed = FATES[attempt]
        for replica, error in gather.lost.items():
            count = sum(index not in gather.scores for index in groups[replica])
            logger.warning("teacher %s lost %d rollouts, %s: %s", self.names[replica], count, lost, error)
        if gather.failed:
            example = next(iter(gather.failed.values()))
            logger.warning("teacher failed on %d rollouts, %s; for example: %s", len(gather.failed), failed, example)
        return gather

    def _restart(self, replica: int, why: str) -> None:
        logger.warning("teacher %s is restarted: %s", self.names[replica], why)
        self.restarted += 1
        ray.kill(self.replicas[replica], no_restart=False)

    def _restart_silent(self, gather: Gather) -> None:
        """Restarts replicas that hang: each would cost `timeout_s` in every step. Ray restarts dead ones by itself."""
        for replica, error in gather.lost.items():
            if isinstance(error, GetTimeoutError):
                self._restart(replica, str(error))

    def _restart_lone_nan(self, scores: Mapping[int, TeacherScore]) -> None:
        """Restarts the only replica after NaN scores: a new load may help. Only once: NaN in the weights would stay."""
        if len(self.replicas) == 1 and not self.reloaded and any(not score.valid.all() for score in scores.values()):
            self.reloaded = True
            self._restart(0, "it gave NaN, and there is no other replica to ask")

    def _restart_mended(self, first: Gather, second: Gather, questions: Sequence[Question]) -> None:
        """Restarts a replica that failed on rollouts, or gave NaN, where another replica scored the same rollouts."""
        if len(self.replicas) == 1:
            return
        mended = {i for i, score in second.scores.items() if _better(score, first.scores.get(i))}
        wrong = {i for i in mended if i in first.scores or i in first.failed}
        for replica in sorted({self.replica_of(questions[i].request.key) for i in wrong}):
            self._restart(replica, "another replica scored rollouts that it could not")

    def _await_alive(self, replica: int, deadline: float) -> None:
        """Waits while Ray restarts the replica. If it is dead for good, or too slow, the next call to it fails."""
        while time.monotonic() < deadline:
            try:
                ray.get(control(self.replicas[replica].ping).remote(), timeout=deadline - time.monotonic())
                return
            except ActorUnavailableError:
                time.sleep(POLL_SECONDS)
            except LOST:
                return


def _int32(ids: IdRows) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def _whole(score: TeacherScore | None) -> bool:
    """Whether there is an answer, and each of its tokens is valid."""
    return score is not None and bool(score.valid.all())


def _better(second: TeacherScore | None, first: TeacherScore | None) -> bool:
    """Whether the second answer has more valid tokens than the first. Any answer is better than None."""
    # -1 and not 0: an answer for an empty response has 0 valid tokens and must still beat no answer.
    valid = [-1 if score is None else int(score.valid.sum()) for score in (first, second)]
    return valid[1] > valid[0]
