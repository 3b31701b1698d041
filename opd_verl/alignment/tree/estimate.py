"""Success probabilities on a tree whose deep nodes were given rollouts of their own (alignment/README.md 3).

A rollout launched at a deep node says nothing about how often the student comes there. Added to the counts of a node
above (as the paper counts), it pulls that node's share of successes toward the deep node's, and more initial rollouts
never undo that. So a node above is estimated over what can happen next:

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
    """A rollout that does not count: a path chosen for its success must not vote for its own success."""

    nodes: Ints
    correct: bool


@dataclass(frozen=True)
class NodeEstimate:
    """The success probability of a node."""

    p_succ: float
    visits: float
    """Effective visits: the number of free rollouts that would estimate P_succ with the same variance."""


@dataclass
class _LaunchedChildren:
    """Sums over a node's children with launches at them or below."""

    mass: float = 0.0
    """Probability of all of them."""
    value: float = 0.0
    """Sum of p P_succ."""
    variance: float = 0.0
    """Sum of p^2 / visits: the variance of `value`, up to a factor P (1 - P)."""
    visits: float = 0.0
    """Rollouts that the student itself took to these children."""
    successes: float = 0.0


@dataclass(frozen=True, eq=False)
class Estimates:
    """Success probabilities of a tree's nodes."""

    tree: GenerationTree
    left: LeftOut | None = None
    known: dict[int, NodeEstimate] = field(default_factory=dict)
    """Nodes with launches at them or below; for all other nodes P_succ is the share among their free rollouts."""

    def of(self, nodes: Ints) -> tuple[Floats, Floats]:
        """P_succ and effective visits of each node; NaN and 0 for NOBODY and for a node without free rollouts."""
        visits, successes = self.free(nodes)
        p_succ = np.divide(successes, visits, out=np.full(nodes.shape, np.nan), where=visits > 0)
        for place in np.argwhere(np.isin(nodes, list(self.known))):
            estimated = self.known[int(nodes[tuple(place)])]
            p_succ[tuple(place)], visits[tuple(place)] = estimated.p_succ, estimated.visits
        return p_succ, visits

    def free(self, nodes: Ints) -> tuple[Floats, Floats]:
        """Visits and successes of the rollouts that were free at each node."""
        visits, successes = (self._count(name, nodes) for name in ("free_visits", "free_successes"))
        if self.left is not None:
            gone = np.isin(nodes, self.left.nodes).astype(float)
            visits, successes = visits - gone, successes - gone * self.left.correct
        return visits, successes

    def drawn(self, nodes: Ints) -> tuple[Floats, Floats]:
        """Visits and successes of the rollouts that the student itself took there: free at the node's parent."""
        visits, successes = self.free(nodes)
        return visits - self._count("launched", nodes), successes - self._count("launched_successes", nodes)

    def _count(self, name: str, nodes: Ints) -> Floats:
        # NOBODY is -1: numpy reads the last node there, and np.where throws that value away.
        return np.where(nodes == NOBODY, 0, self.tree.counts[name][nodes]).astype(float)


def estimate(tree: GenerationTree, edges: Sequence[Edge], left: LeftOut | None = None) -> Estimates:
    """All nodes' success probabilities.

    Args:
        edges: every edge on the way to a launch, once, deepest first.
        left: an initial rollout that does not count.
    """
    estimates, sums = Estimates(tree, left), dict[int, _LaunchedChildren]()
    children = np.array([edge.child for edge in edges], np.int64)
    launched = tree.counts["launched"][children] > 0
    counts = np.stack([*estimates.free(children), *estimates.drawn(children)], -1).tolist()
    # Deepest first: when an edge's turn comes, `sums` has all that lies below its child.
    for edge, here, (visits, successes, *drawn) in zip(edges, launched, counts, strict=True):
        below = sums.pop(edge.child, None)
        if below is not None:
            estimates.known[edge.child] = _joined(below, visits, successes)
        elif not here:
            continue
        else:
            estimates.known[edge.child] = _alone(visits, successes)
        _add(sums.setdefault(edge.parent, _LaunchedChildren()), edge.p, estimates.known[edge.child], drawn)
    # The root remains: no edge leads to it.
    rest = np.array(list(sums), np.int64)
    for node, visits, successes in zip(sums, *estimates.free(rest), strict=True):
        estimates.known[node] = _joined(sums[node], visits, successes)
    return estimates


def _alone(visits: float, successes: float) -> NodeEstimate:
    return NodeEstimate(successes / visits if visits > 0 else float("nan"), visits)


def _add(total: _LaunchedChildren, p: float, child: NodeEstimate, drawn: Sequence[float]) -> None:
    if child.visits <= 0:
        return
    total.mass += p
    total.value += p * child.p_succ
    total.variance += p**2 / child.visits
    total.visits += drawn[0]
    total.successes += drawn[1]


def _joined(below: _LaunchedChildren, visits: float, successes: float) -> NodeEstimate:
    """A node's estimate from its children with launches and its free rollouts that went elsewhere."""
    if below.mass <= 0.0:
        return _alone(visits, successes)
    # float32 probabilities of all children can sum to a little more than 1.
    rest, others = max(1.0 - below.mass, 0.0), visits - below.visits
    # No rollout went elsewhere: the children's own mean stands in for P(rest).
    elsewhere = (successes - below.successes) / others if others > 0 else below.value / below.mass
    # max(others, 1): an unvisited rest is as unsure as one visit, so that the variance stays finite.
    variance = below.variance + rest**2 / max(others, 1.0)
    return NodeEstimate(below.value + rest * elsewhere, 1.0 / variance)
