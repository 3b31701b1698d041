"""Makes Ray actors of `TeacherActor`, and waits until they have loaded their model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from opd_verl.teacher.client.gather import LOST
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.settings import TeacherSettings

CONTROL, COLLECTS = "control", 16
"""Ray's name for the one thread that runs submit, ping, stats and lm_head beside up to 16 waiting collects."""


class RemoteMethod(Protocol):
    """A method of a Ray actor's handle; Ray's own type for it has no signature."""

    def remote(self, *arguments: object) -> ray.ObjectRef:
        """Calls the method in the actor, without waiting."""
        ...

    def options(self, *, concurrency_group: str) -> "RemoteMethod":
        """The method in a thread group of the actor."""
        ...


def control(method: RemoteMethod) -> RemoteMethod:
    """An actor's method in the control thread, where it does not wait for collects."""
    return method.options(concurrency_group=CONTROL)


def make_replicas(
    settings: TeacherSettings,
    replicas: int,
    name_prefix: str,
    placement_groups: Sequence[tuple[PlacementGroup, int]] | None,
    options: Mapping[str, object],
    servers: Sequence[ActorHandle] = (),
) -> list[ActorHandle]:
    """Named actors that restart when they die, each shard on its (placement group, bundle index) if these are given.

    A replica of S shards takes S neighbouring bundles: its actor gets the first, the actor's followers get the others.
    `servers`: one inference server per replica, where servers do the scoring.
    Raises ValueError for a replica count that does not fit.
    """
    shards = settings.teacher.shards
    if replicas < 1 or (placement_groups is not None and len(placement_groups) != replicas * shards):
        each = "one (group, bundle index) for each" + (f" of their {shards} shards" if shards > 1 else "")
        raise ValueError(f"{replicas} teacher replicas on {placement_groups}: {each}")
    if servers and (len(servers) != replicas or shards > 1):
        raise ValueError(f"{replicas} teacher replicas of {shards} shards for {len(servers)} inference servers")
    places = [{}] * replicas * shards if placement_groups is None else [placement(*at) for at in placement_groups]
    actor_class = ray.remote(concurrency_groups={CONTROL: 1})(TeacherActor)  # pyright: ignore[reportCallIssue]
    # No task retries: a replica that dies over a rollout would die over it again. `TeacherPool` asks another replica.
    shared = {**options, "max_concurrency": COLLECTS, "max_restarts": -1, "max_task_retries": 0}
    handles = []
    for index in range(replicas):
        first, *others = places[index * shards : (index + 1) * shards]
        remote = actor_class.options(name=f"{name_prefix}_{index}", **shared, **first)
        followers = [{**options, **place} for place in others]
        handles.append(remote.remote(settings, followers, servers[index] if servers else None))
    return handles


def await_load(handles: Sequence[ActorHandle], model_path: str, timeout_s: float) -> None:
    """Returns when all replicas have loaded. If one fails, ends them all and raises RuntimeError with its cause."""
    pings = [control(handle.ping).remote() for handle in handles]
    try:
        ray.get(pings, timeout=timeout_s)
    except LOST as error:
        for handle in handles:
            ray.kill(handle)
        raise RuntimeError(f"teacher {model_path} did not load on {len(pings)} replicas: {error}") from error


def placement(group: PlacementGroup, bundle: int) -> dict[str, PlacementGroupSchedulingStrategy]:
    """Actor options that put an actor on one bundle of the group."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}
