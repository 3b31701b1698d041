"""The node table: one row for each question, path, position on it and teacher.

Shapes: L tokens of a path, K known ids at a position; S_u, the children with enough visits, is a subset of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from opd_verl.alignment.gradients import local
from opd_verl.alignment.gradients.losses import LossSettings, chosen
from opd_verl.alignment.tree.generation_tree import NOBODY, Ints
from opd_verl.alignment.tree.question import Path, QuestionTree

GKD, SINGLE, DR_GRPO, MINILLM = "gkd", "single_sample", "dr_grpo", "minillm"
OBJECTIVES = (GKD, SINGLE, DR_GRPO, MINILLM)
COSINE = "cosine/"
"""Prefix of a column of cosines; the objective's name follows."""
SCHEMA = (
    ("question", pa.int32()),
    ("path", pa.int32()),
    ("correct", pa.bool_()),
    ("pass_rate", pa.float64()),
    ("depth", pa.int32()),
    ("length", pa.int32()),
    ("token", pa.int32()),
    ("teacher", pa.string()),
    ("support", pa.list_(pa.int32())),
    ("p", pa.list_(pa.float64())),
    ("q", pa.list_(pa.float64())),
    ("p_succ", pa.list_(pa.float64())),
    ("visits", pa.list_(pa.float64())),
    ("success_range", pa.float64()),
    ("decision", pa.bool_()),
    ("advantage", pa.float64()),
    ("kl", pa.float64()),
    ("js", pa.float64()),
    ("l2", pa.float64()),
    ("similarity", pa.float64()),
)
ColumnValues = Sequence[object] | np.ndarray
ROUNDING = 1e-12
"""A smaller success range is rounding error: all children are equally good."""


@dataclass(frozen=True)
class NodeSettings:
    """The visits that make a child count, and the objectives that are compared."""

    significant: float = 20.0
    """Effective visits that a child needs to belong to S_u (N_sig); 40 for long traces."""
    objectives: Sequence[str] = (GKD,)
    """Any of OBJECTIVES."""
    losses: Mapping[str, LossSettings] | None = None
    """Further objectives, by name."""

    @property
    def names(self) -> list[str]:
        """Names of all objectives."""
        return [*self.objectives, *(self.losses or {})]


@dataclass(frozen=True, eq=False)
class Children:
    """Estimates of the children along a path, [L, K], float64: differences of P_succ are small against float32."""

    ids: Ints
    member: Tensor
    """Whether a child belongs to S_u."""
    p_succ: Tensor
    visits: Tensor
    """Effective visits."""
    drawn: Tensor
    """Rollouts that the student itself took to the child."""
    drawn_successes: Tensor
    to_go: Mapping[str, Tensor]
    """Sums of the reward-to-go of the drawn rollouts by teacher; empty if it was not measured."""


def children_of(question: QuestionTree, path: Path, significant: float) -> Children:
    """Estimates along a path, without the path's own rollout."""
    estimates = question.estimates(without=path)
    nodes = question.tree.child(question.nodes(path)[:-1, None], path.ids)
    p_succ, visits = map(torch.from_numpy, estimates.of(nodes))
    drawn, successes = map(torch.from_numpy, estimates.drawn(nodes))
    to_go = {name: torch.from_numpy(question.reward_to_go(name, nodes, path)) for name in question.rewards}
    member = (visits >= significant) & torch.from_numpy(path.ids != NOBODY)
    return Children(path.ids, member, p_succ, visits, drawn, successes, to_go)


def directions(
    children: Children, path: Path, teacher: str, pass_rate: float, settings: NodeSettings
) -> Iterator[tuple[str, Tensor]]:
    """(objective, gradient [L, K]) of each objective, with the sign that training follows."""
    log_p, log_q = sides(path, teacher)
    p, member, drawn = log_p.exp(), children.member, children.drawn
    for name in settings.objectives:
        if name == GKD:
            yield name, local.local_gradient(p, log_q - log_p, member)
        elif name == SINGLE:
            yield name, local.sampled_gradient(p, drawn * (log_q - log_p - 1.0), drawn, member)
        elif name == DR_GRPO:
            weight = local.dr_grpo_weight(drawn, children.drawn_successes, pass_rate)
            yield name, local.sampled_gradient(p, weight, drawn, member)
        elif name == MINILLM:
            # eq. 2.10 subtracts 1 from every rollout's reward-to-go: `drawn` of them in sum.
            yield name, local.sampled_gradient(p, children.to_go[teacher] - drawn, drawn, member)
    for name, loss in (settings.losses or {}).items():
        ids = chosen(loss, log_p, log_q)
        f = local.objective_pull(log_p, log_q, ids, loss.divergence, loss.tail, loss.beta)
        yield name, local.local_gradient(p, f, member)


def sides(path: Path, teacher: str) -> tuple[Tensor, Tensor]:
    """log p and log q at the known ids, float64 [L, K]; -inf is padding."""
    known = torch.from_numpy(path.ids != NOBODY)
    both = (torch.from_numpy(np.asarray(side, np.float64)) for side in (path.log_p, path.log_q[teacher]))
    log_p, log_q = (torch.where(known, side, -torch.inf) for side in both)
    return log_p, log_q


def question_nodes(question: QuestionTree, settings: NodeSettings) -> pa.Table:
    """The rows of one question."""
    tables = [
        path_nodes(question, number, children, teacher, settings)
        for number, path in enumerate(question.paths)
        for children in [children_of(question, path, settings.significant)]
        for teacher in path.log_q
    ]
    return pa.concat_tables([schema(settings).empty_table(), *tables])


def schema(settings: NodeSettings) -> pa.Schema:
    """Columns of the node table."""
    return pa.schema([*SCHEMA, *((COSINE + name, pa.float64()) for name in settings.names)])


def path_nodes(
    question: QuestionTree, number: int, children: Children, teacher: str, settings: NodeSettings
) -> pa.Table:
    """The rows of one path and teacher."""
    path, member = question.paths[number], children.member
    log_p, log_q = sides(path, teacher)
    p, q, length = log_p.exp(), log_q.exp(), len(path.tokens)
    spread = local.success_range(children.p_succ, member)
    decision = (member.sum(-1) >= 2) & (spread > ROUNDING)
    ideal = local.local_gradient(p, children.p_succ, member)
    cosines = {
        COSINE + name: torch.where(decision, local.cosine(ideal, gradient), torch.nan)
        for name, gradient in directions(children, path, teacher, question.pass_rate, settings)
    }
    constant = {"question": question.number, "path": number, "correct": path.correct, "pass_rate": question.pass_rate}
    constant |= {"length": length, "teacher": teacher}
    columns: dict[str, ColumnValues] = {name: [value] * length for name, value in constant.items()}
    columns |= {"depth": list(range(length)), "token": path.tokens, "decision": decision.numpy()}
    columns |= {"support": _lists(torch.from_numpy(children.ids.astype(np.int64)), member)}
    lists = {"p": p, "q": q, "p_succ": children.p_succ, "visits": children.visits}
    columns |= {name: _lists(values, member) for name, values in lists.items()}
    columns |= {"success_range": spread.numpy()}
    columns |= {"advantage": local.teacher_advantage(p, q, children.p_succ, member).numpy()}
    columns |= {name: values.numpy() for name, values in (local.apart(log_p, log_q) | cosines).items()}
    ordered = schema(settings)
    return pa.table({name: columns[name] for name in ordered.names}, schema=ordered)


def _lists(values: Tensor, member: Tensor) -> list[list[float]]:
    return [row[inside].tolist() for row, inside in zip(values, member, strict=True)]
