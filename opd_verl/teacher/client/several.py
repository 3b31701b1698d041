"""Several teachers in one run: a data field picks the one that scores a rollout, or all of them are averaged.

Both classes stand where a single `TeacherPool` does, and hold one pool for each teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest, TeacherScore

T = TypeVar("T")


class Teacher(Protocol):
    """What the trainer and the agent loop need of a teacher: a `TeacherPool`, or several of them."""

    def submit(self, request: ScoreRequest, step: int) -> None:
        """`TeacherPool.submit`."""

    def collect(
        self,
        requests: Sequence[ScoreRequest],
        at_ids: Sequence[Any] | None,
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[TeacherScore]:
        """`TeacherPool.collect`."""
        ...

    def stats(self) -> dict[str, float]:
        """`TeacherPool.stats`, over all pools."""
        ...


def at_once(calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """What the calls return, by name, each made in a thread of its own. Raises what a call raises, when all ended."""
    with ThreadPoolExecutor(max_workers=len(calls)) as threads:
        pending = {name: threads.submit(call) for name, call in calls.items()}
    return {name: future.result() for name, future in pending.items()}


def summed_stats(pools: Mapping[str, Teacher]) -> dict[str, float]:
    """The pools' totals together."""
    total: dict[str, float] = {}
    for pool in pools.values():
        for name, value in pool.stats().items():
            total[name] = total.get(name, 0.0) + value
    return total


def routes(rows: Any, field: str) -> list[str]:
    """What picks the teacher of each row of a batch: `field` as a string.

    Raises:
        ValueError: the data have no such field.
    """
    if field not in rows:
        raise ValueError(f"opd.route_field={field}: no such field (the data have: {', '.join(sorted(rows.keys()))})")
    return [str(value) for value in rows.get(field).tolist()]


@dataclass(frozen=True, eq=False)
class RoutedTeachers:
    """A rollout is scored by the one teacher that its request's `route` names.

    pools: by the teacher's name; names: value of the data field -> teacher's name; field: `opd.route_field`.
    """

    pools: Mapping[str, Teacher]
    names: Mapping[str, str]
    field: str

    def name_of(self, route: str) -> str:
        """The teacher for this value of the field. Raises ValueError where it is nobody's."""
        if route not in self.names:
            known = ", ".join(f"{value}: {name}" for value, name in self.names.items())
            raise ValueError(f"{self.field}={route!r} is in the `values` of none of opd.teachers ({known})")
        return self.names[route]

    def submit(self, request: ScoreRequest, step: int) -> None:
        """To the request's own teacher; returns without waiting. Raises ValueError where it has none."""
        self.pools[self.name_of(request.route)].submit(request, step)

    def collect(
        self,
        requests: Sequence[ScoreRequest],
        at_ids: Sequence[Any] | None,
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[TeacherScore]:
        """Each teacher's scores of its own rollouts, in the order of `requests`. Arguments: `TeacherPool.collect`.

        Raises ValueError for a request without a teacher, or one that its teacher cannot answer.
        """
        rows: dict[str, list[int]] = {name: [] for name in self.pools}
        for row, request in enumerate(requests):
            rows[self.name_of(request.route)].append(row)

        def ask(name: str) -> list[TeacherScore]:
            ids = None if at_ids is None else [at_ids[row] for row in rows[name]]
            return self.pools[name].collect([requests[row] for row in rows[name]], ids, step, topk, entropy, hidden)

        answers = at_once({name: partial(ask, name) for name in self.pools})
        found = {row: one for name, own in rows.items() for row, one in zip(own, answers[name], strict=True)}
        return [found[row] for row in range(len(requests))]

    def stats(self) -> dict[str, float]:
        """Summed over the teachers."""
        return summed_stats(self.pools)


@dataclass(frozen=True, eq=False)
class AveragedTeachers:
    """Every rollout is scored by all teachers, and q is the `mixture` of theirs; pools and weights by their names."""

    pools: Mapping[str, Teacher]
    weights: Mapping[str, float]

    def submit(self, request: ScoreRequest, step: int) -> None:
        """To all teachers; returns without waiting."""
        for pool in self.pools.values():
            pool.submit(request, step)

    def collect(
        self,
        requests: Sequence[ScoreRequest],
        at_ids: Sequence[Any] | None,
        step: int,
        topk: int = 0,
        entropy: bool = True,
        hidden: bool = False,
    ) -> list[TeacherScore]:
        """The mixtures in the order of `requests`, without an entropy. Arguments: `TeacherPool.collect`."""
        assert not topk and not hidden, "checks/teachers.py refuses what a mixture cannot answer"
        answers = at_once(
            {name: partial(pool.collect, requests, at_ids, step, entropy=False) for name, pool in self.pools.items()}
        )
        weights = [self.weights[name] for name in answers]
        return [mixture(parts, weights) for parts in zip(*answers.values(), strict=True)]

    def stats(self) -> dict[str, float]:
        """Summed over the teachers."""
        return summed_stats(self.pools)


def mixture(scores: Sequence[TeacherScore], weights: Sequence[float]) -> TeacherScore:
    """`q = sum_i w_i q_i` of several teachers' scores of one rollout, at its R tokens and the ids asked for.

    A token is valid where all teachers are. The entropy of q is not a function of the parts' and is None, as is their
    top-k. Weights are positive and need not sum to 1.
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
    # A mean lies between its parts: rounding must not lift a probability above them, and above 1.
    return mixed.clamp(log_q.amin(0), log_q.amax(0)).float()
