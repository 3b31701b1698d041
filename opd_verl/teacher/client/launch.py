"""Makes Ray actors of `TeacherActor`, and waits until they have loaded their model."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from opd_verl.teacher.client.gather import LOST
from opd_verl.teacher.replica.actor import TeacherActor
from opd_verl.teacher.settings import TeacherSettings

CONTROL, COLLECTS = "control", 16
"""One thread for submit, ping, stats and lm_head, so that they return beside up to 16 waiting collects."""


def control(method: Any) -> Any:
    """An actor's method that does not wait for its collects."""
    return method.options(concurrency_group=CONTROL)


def launch(
    model_path: str,
    settings: TeacherSettings | Mapping[str, Any],
    replicas: int,
    name_prefix: str,
    placement_groups: Sequence[tuple[PlacementGroup, int]] | None,
    options: Mapping[str, Any],
    servers: Sequence[ActorHandle] = (),
) -> list[ActorHandle]:
    """Named actors that restart when they die, on the (placement group, bundle index) of theirs if those are given.

    A replica of S shards takes S bundles behind one another: its actor the first, the actor's followers the others.
    `servers`: the inference server of each replica, where these score.
    Raises ValueError for a replica count that does not fit.
    """
    settings = settings if isinstance(settings, TeacherSettings) else TeacherSettings(**settings)
    shards = settings.shards
    if replicas < 1 or (placement_groups is not None and len(placement_groups) != replicas * shards):
        each = "one (group, bundle index) for each" + (f" of their {shards} shards" if shards > 1 else "")
        raise ValueError(f"{replicas} teacher replicas on {placement_groups}: {each}")
    if servers and (len(servers) != replicas or shards > 1):
        raise ValueError(f"{replicas} teacher replicas of {shards} shards for {len(servers)} inference servers")
    places = [{}] * replicas * shards if placement_groups is None else [placement(*at) for at in placement_groups]
    actor_class: Any = ray.remote(concurrency_groups={CONTROL: 1})(TeacherActor)  # pyright: ignore[reportCallIssue]
    shared = {**options, "max_concurrency": COLLECTS, "max_restarts": -1, "max_task_retries": 0}
    handles = []
    for index in range(replicas):
        first, *others = places[index * shards : (index + 1) * shards]
        remote = actor_class.options(name=f"{name_prefix}_{index}", **shared, **first)
        followers = [{**options, **place} for place in others]
        handles.append(remote.remote(model_path, settings, followers, servers[index] if servers else None))
    return handles


def await_load(handles: Sequence[ActorHandle], model_path: str, timeout_s: float) -> None:
    """Returns when all have loaded. Raises RuntimeError with the actor's cause if one fails, and ends them all."""
    pings = [control(handle.ping).remote() for handle in handles]
    try:
        ray.get(pings, timeout=timeout_s)
    except LOST as error:
        for handle in handles:
            ray.kill(handle)
        raise RuntimeError(f"teacher {model_path} did not load on {len(pings)} replicas: {error}") from error


def placement(group: PlacementGroup, bundle: int) -> dict[str, PlacementGroupSchedulingStrategy]:
    """Actor options that put it on a bundle of the group."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}
