"""The Ray actors that hold the other shards of a teacher replica. The replica's leader makes them; they end with it.

Ray ends actors whose owner died. When a follower dies, the leader ends itself; Ray restarts the leader, which makes new
followers. NCCL and gloo groups cannot take a new member, so a replica always restarts whole.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import NoReturn, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from opd_verl.teacher.replica.device import see_own_gpus_only
from opd_verl.teacher.replica.load import load_scorer
from opd_verl.teacher.scoring.reader import default_device
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.shard_reader import ShardedReader, follow
from opd_verl.teacher.scoring.sharded import find_store, init_group, open_store
from opd_verl.teacher.settings import TeacherSettings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
Result = TypeVar("Result")


class ShardFollower:
    """One shard of a replica; a Ray actor."""

    def serve(self, rank: int, world: int, port: int, device: str) -> NoReturn:
        """Joins the leader's group and obeys its messages for ever. Passes on errors of loading and reading."""
        see_own_gpus_only()
        init_group(rank, world, find_store(port, world), device)
        follow()


def lead(settings: TeacherSettings, follower_options: Sequence[Mapping[str, object]]) -> Scorer:
    """A Scorer whose model is sharded over this process and new followers, one for each set of Ray actor options.

    Raises the error of a process that fails to load, and ValueError where the number of options is not `shards` - 1.
    After the load, this process ends when a follower ends.
    """
    world = settings.teacher.shards
    if len(follower_options) != world - 1:
        raise ValueError(f"{len(follower_options)} followers; a replica of {world} shards has {world - 1}")
    device, store = settings.device or default_device(), open_store(world)

    def load() -> Scorer:
        init_group(0, world, store, device)
        return load_scorer(settings, ShardedReader.load)

    followers = [_make(options) for options in follower_options]
    serving = [actor.serve.remote(rank, world, store.port, device) for rank, actor in enumerate(followers, 1)]
    # The leader loads in a thread: the load is collective, so a rank that fails would leave the others waiting in it.
    try:
        scorer = _await_load(_in_thread(load), serving)
    except Exception:
        for actor in followers:  # Ray ends this process only when the tasks that it gave to others have ended
            ray.kill(actor)
        raise
    threading.Thread(target=_end_with, args=(followers, serving), name="shard-watch", daemon=True).start()
    return scorer


def _make(options: Mapping[str, object]) -> ActorHandle:
    return cast(ActorHandle, ray.remote(ShardFollower).options(**options).remote())


def _in_thread(call: Callable[[], Result]) -> "Future[Result]":
    """Runs the call in a daemon thread: the process may end while it still runs."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="shard-load", daemon=True).start()
    return future


def _await_load(loading: "Future[Scorer]", serving: Sequence[ray.ObjectRef]) -> Scorer:
    """The loaded scorer. Raises the error of a rank that fails: the other ranks would wait for this rank for ever."""
    while not loading.done():
        ended, _ = ray.wait(list(serving), num_returns=1, timeout=POLL_SECONDS)
        if ended:
            _raise_from(ended[0])
    return loading.result()


def _raise_from(ended: ray.ObjectRef) -> NoReturn:
    """Raises a follower's own error. If the follower was killed, ends this process: Ray restarts the whole replica."""
    try:
        ray.get(ended)
    except RayActorError as error:
        end(error)
    raise AssertionError("a follower never returns")


def _end_with(followers: Sequence[ActorHandle], serving: Sequence[ray.ObjectRef]) -> None:
    """Ends this process when a follower ends. Holds the followers' handles until then, which keeps them alive."""
    ended, _ = ray.wait(list(serving), num_returns=1)
    try:
        ray.get(ended[0])
    except RayError as error:
        end(error)


def end(error: Exception) -> NoReturn:
    """Ends this process, which can score no more; Ray starts it anew."""
    logger.error("the replica restarts: %s", error)
    os._exit(1)  # sys.exit would end only the thread that calls it
