"""Success probabilities on a tree whose deep nodes were given rollouts of their own.

A rollout launched at a deep node says nothing of how often the student comes there: added to the counts of a node above
(as the paper counts), it pulls that node's share of successes toward the deep node's, for good. So a node above is
estimated over what can happen next:

    P(u) = sum_c p(c) P(c) + (1 - sum_c p(c)) P(rest)        c: the children with launches at them or below

p(c) is the student's own probability, P(rest) the share of successes among u's free rollouts that went elsewhere. Every
rollout counts at every node of its path, and P converges to the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opd_verl.alignment.tree.generation_tree import NOBODY, GenerationTree, Ints

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Edge:
    """A child whose probability is known."""

    parent: int
    child: int
    p: float
    """Student's probability of the child's token."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A rollout that is left out: whoever asks about a path because it succeeded must not count its own success."""

    nodes: Ints
    correct: bool


@dataclass(frozen=True)
class NodeEstimate:
    """What is known of a node."""

    p_succ: float
    visits: float
    """As many free rollouts would know it as well."""


@dataclass
class _Sum:
    """Over a node's children with launches: what the estimate needs of them."""

    mass: float = 0.0
    value: float = 0.0
    variance: float = 0.0
    visits: float = 0.0
    successes: float = 0.0


@dataclass(frozen=True, eq=False)
class Estimates:
    """Success probabilities of a tree's nodes."""

    tree: GenerationTree
    left: LeftOut | None = None
    known: dict[int, NodeEstimate] = field(default_factory=dict)
    """Nodes with launches below them; all others are told by their free rollouts."""

    def of(self, nodes: Ints) -> tuple[Floats, Floats]:
        """P_succ and effective visits of each; NaN and 0 for NOBODY and for a node without free rollouts."""
        visits, successes = self.free(nodes)
        found = np.divide(successes, visits, out=np.full(nodes.shape, np.nan), where=visits > 0)
        for place in np.argwhere(np.isin(nodes, list(self.known))):
            one = self.known[int(nodes[tuple(place)])]
            found[tuple(place)], visits[tuple(place)] = one.p_succ, one.visits
        return found, visits

    def free(self, nodes: Ints) -> tuple[Floats, Floats]:
        """Visits and successes of the rollouts that were free at each node."""
        visits, successes = (self._count(name, nodes) for name in ("free_visits", "free_successes"))
        if self.left is not None:
            gone = np.isin(nodes, self.left.nodes).astype(float)
            visits, successes = visits - gone, successes - gone * self.left.correct
        return visits, successes

    def drawn(self, nodes: Ints) -> tuple[Floats, Floats]:
        """The same of those that the student itself took there: free at each node's parent."""
        visits, successes = self.free(nodes)
        return visits - self._count("launched", nodes), successes - self._count("launched_successes", nodes)

    def _count(self, name: str, nodes: Ints) -> Floats:
        return np.where(nodes == NOBODY, 0, self.tree.counts[name][nodes]).astype(float)


def estimate(tree: GenerationTree, edges: Sequence[Edge], left: LeftOut | None = None) -> Estimates:
    """All nodes' success probabilities.

    Args:
        edges: every edge on the way to a launch, once, deepest first.
        left: an initial rollout that does not count.
    """
    found, sums = Estimates(tree, left), dict[int, _Sum]()
    children = np.array([edge.child for edge in edges], np.int64)
    launched = tree.counts["launched"][children] > 0
    counts = np.stack([*found.free(children), *found.drawn(children)], -1).tolist()
    for edge, here, (visits, successes, *drawn) in zip(edges, launched, counts, strict=True):
        below = sums.pop(edge.child, None)
        if below is not None:
            found.known[edge.child] = _joined(below, visits, successes)
        elif not here:
            continue
        else:
            found.known[edge.child] = _alone(visits, successes)
        _add(sums.setdefault(edge.parent, _Sum()), edge.p, found.known[edge.child], drawn)
    rest = np.array(list(sums), np.int64)
    for node, visits, successes in zip(sums, *found.free(rest), strict=True):
        found.known[node] = _joined(sums[node], visits, successes)
    return found


def _alone(visits: float, successes: float) -> NodeEstimate:
    return NodeEstimate(successes / visits if visits > 0 else float("nan"), visits)


def _add(total: _Sum, p: float, child: NodeEstimate, drawn: Sequence[float]) -> None:
    if child.visits <= 0:
        return
    total.mass += p
    total.value += p * child.p_succ
    total.variance += p**2 / child.visits
    total.visits += drawn[0]
    total.successes += drawn[1]


def _joined(below: _Sum, visits: float, successes: float) -> NodeEstimate:
    """A node's own, of its children with launches and its free rollouts that went elsewhere."""
    if below.mass <= 0.0:
        return _alone(visits, successes)
    rest, others = max(1.0 - below.mass, 0.0), visits - below.visits
    elsewhere = (successes - below.successes) / others if others > 0 else below.value / below.mass
    variance = below.variance + rest**2 / max(others, 1.0)
    return NodeEstimate(below.value + rest * elsewhere, 1.0 / variance)
