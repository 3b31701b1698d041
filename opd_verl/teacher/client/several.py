"""Several teachers in one run: a data field picks the teacher of each rollout, or the teachers are averaged.

Both classes offer the methods of a single `TeacherPool`, and hold one pool for each teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from opd_verl.teacher.score import CollectSpec, IdRows, ScoreRequest, TeacherScore

T = TypeVar("T")


class Teacher(Protocol):
    """The methods of a teacher that the trainer and the agent loop call: a `TeacherPool`, or several of them."""

    def submit(self, request: ScoreRequest, step: int) -> None:
        """`TeacherPool.submit`."""

    def collect(
        self, requests: Sequence[ScoreRequest], at_ids: Sequence[IdRows] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        """`TeacherPool.collect`."""
        ...

    def stats(self) -> dict[str, float]:
        """`TeacherPool.stats`, over all pools."""
        ...


def at_once(calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """The calls' results by name, each call in a thread of its own. Raises a call's error when all have ended."""
    with ThreadPoolExecutor(max_workers=len(calls)) as threads:
        pending = {name: threads.submit(call) for name, call in calls.items()}
    return {name: future.result() for name, future in pending.items()}


def summed_stats(pools: Mapping[str, Teacher]) -> dict[str, float]:
    """The sum of the pools' statistics."""
    total: dict[str, float] = {}
    for pool in pools.values():
        for name, value in pool.stats().items():
            total[name] = total.get(name, 0.0) + value
    return total


def routes(rows: TensorDict, field: str) -> list[str]:
    """The value of `field` in each row of a batch, as a string: it picks the row's teacher.

    Raises:
        ValueError: the data have no such field.
    """
    if field not in rows:
        raise ValueError(
            f"opd.route_field={field}: no such field (the data have: {', '.join(sorted(map(str, rows.keys())))})"
        )
    return [str(value) for value in rows.get(field).tolist()]


@dataclass(frozen=True, eq=False)
class RoutedTeachers:
    """Several teachers, one for each rollout: the request's `route` picks the teacher.

    pools: by the teacher's name; names: value of the data field -> teacher's name; field: `opd.route_field`.
    """

    pools: Mapping[str, Teacher]
    names: Mapping[str, str]
    field: str

    def name_of(self, route: str) -> str:
        """The name of the teacher for this value of the field. Raises ValueError where no teacher has the value."""
        if route not in self.names:
            known = ", ".join(f"{value}: {name}" for value, name in self.names.items())
            raise ValueError(f"{self.field}={route!r} is in the `values` of none of opd.teachers ({known})")
        return self.names[route]

    def submit(self, request: ScoreRequest, step: int) -> None:
        """Sends the request to its own teacher, without waiting. Raises ValueError where it has none."""
        self.pools[self.name_of(request.route)].submit(request, step)

    def collect(
        self, requests: Sequence[ScoreRequest], at_ids: Sequence[IdRows] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        """Each teacher's scores of its own rollouts, in the order of `requests`. Arguments: `TeacherPool.collect`.

        Raises ValueError for a request without a teacher, or a request that its teacher cannot answer.
        """
        rows: dict[str, list[int]] = {name: [] for name in self.pools}
        for row, request in enumerate(requests):
            rows[self.name_of(request.route)].append(row)

        def ask(name: str) -> list[TeacherScore]:
            ids = None if at_ids is None else [at_ids[row] for row in rows[name]]
            return self.pools[name].collect([requests[row] for row in rows[name]], ids, spec)

        # All teachers are asked at the same time. A teacher without rollouts in this step answers with an empty list.
        answers = at_once({name: partial(ask, name) for name in self.pools})
        by_row = {row: score for name, own in rows.items() for row, score in zip(own, answers[name], strict=True)}
        return [by_row[row] for row in range(len(requests))]

    def stats(self) -> dict[str, float]:
        """`TeacherPool.stats`, summed over the teachers."""
        return summed_stats(self.pools)


@dataclass(frozen=True, eq=False)
class AveragedTeachers:
    """Teachers that all score every rollout; q is the `mixture` of their scores. Pools and weights are by name."""

    pools: Mapping[str, Teacher]
    weights: Mapping[str, float]

    def submit(self, request: ScoreRequest, step: int) -> None:
        """Sends the request to all teachers, without waiting."""
        for pool in self.pools.values():
            pool.submit(request, step)

    def collect(
        self, requests: Sequence[ScoreRequest], at_ids: Sequence[IdRows] | None, spec: CollectSpec
    ) -> list[TeacherScore]:
        """The mixtures in the order of `requests`, without an entropy. Arguments: `TeacherPool.collect`."""
        assert not spec.topk and not spec.hidden, "checks/several_teachers.py refuses what a mixture cannot answer"
        # The parts' entropies would travel for nothing: the entropy of a mixture is not a function of them.
        part = replace(spec, entropy=False)
        answers = at_once({name: partial(pool.collect, requests, at_ids, part) for name, pool in self.pools.items()})
        weights = [self.weights[name] for name in answers]
        return [mixture(parts, weights) for parts in zip(*answers.values(), strict=True)]

    def stats(self) -> dict[str, float]:
        """`TeacherPool.stats`, summed over the teachers."""
        return summed_stats(self.pools)


def mixture(scores: Sequence[TeacherScore], weights: Sequence[float]) -> TeacherScore:
    """`q = sum_i w_i q_i` of several teachers' scores of one rollout, at its R tokens and at the ids asked for.

    A token is valid where every teacher's score is valid. Entropy and top-k are None: the teachers' entropies and
    top-k do not determine them.
    Weights are positive and need not sum to 1.
    """
    at_ids = [score.at_ids_log_q for score in scores if score.at_ids_log_q is not None]
    assert len(at_ids) in (0, len(scores)), "the teachers were asked for the same"
    return TeacherScore(
        log_q=log_mean([score.log_q for score in scores], weights),
        valid=torch.stack([score.valid for score in scores]).all(0),
        at_ids_log_q=log_mean(at_ids, weights) if at_ids else None,
    )


def log_mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`logsumexp_i(log w_i + log q_i)` with w normalised, of log-probs of one shape; float32, float64 inside."""
    log_q = torch.stack([part.double() for part in parts])
    weight = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (log_q.dim() - 1))
    mixed = torch.logsumexp(log_q + (weight / weight.sum()).log(), dim=0)
    # A mean lies between its parts: rounding must not lift a probability above the largest part, and so above 1.
    return mixed.clamp(log_q.amin(0), log_q.amax(0)).float()
