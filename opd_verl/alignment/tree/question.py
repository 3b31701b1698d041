"""One question: its tree, its representative paths, and the models' log-probs along them.

Shapes: L tokens of a path, K ids at a position, N nodes of the tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opd_verl.alignment.tree.estimate import Edge, Estimates, LeftOut, estimate
from opd_verl.alignment.tree.generation_tree import NOBODY, ROOT, GenerationTree, Ints, PackedRollouts

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Path:
    """A rollout that every model reads."""

    tokens: Ints
    """[L]"""
    correct: bool
    ids: Ints
    """[L, K] ids at the position of each token: the path's own token, and the ids that some model gives more than the
    threshold; NOBODY is padding."""
    log_p: Floats
    """[L, K] student, nats."""
    log_q: Mapping[str, Floats]
    """[L, K] of each teacher, nats."""

    @property
    def log_p_token(self) -> Floats:
        """Student's log-probs of the path's own tokens [L], nats."""
        return self.log_p[self.ids == self.tokens[:, None]]

    def log_q_token(self, teacher: str) -> Floats:
        """A teacher's log-probs of the path's own tokens [L], nats."""
        return self.log_q[teacher][self.ids == self.tokens[:, None]]


@dataclass(frozen=True, eq=False)
class QuestionTree:
    """A prompt with the tree of its rollouts, its paths, and the pass rate of its initial rollouts."""

    number: int
    """Row of the prompts."""
    tree: GenerationTree
    paths: Sequence[Path]
    pass_rate: float
    """Share of correct initial rollouts."""
    rewards: dict[str, Floats] = field(default_factory=dict)
    """Sum of the reward-to-go of the rollouts that the student itself took to each node [N], by teacher."""

    def nodes(self, path: Path) -> Ints:
        """Nodes along a path [L + 1]: the root, and the node behind every token."""
        behind = self.tree.locate(PackedRollouts.of([path.tokens], [0], [path.correct]))
        return np.concatenate([np.array([ROOT], behind.dtype), behind])

    def estimates(self, without: Path | None = None) -> Estimates:
        """Success probabilities; `without` is the path whose own rollout must not count."""
        left = None if without is None else LeftOut(self.nodes(without), without.correct)
        return estimate(self.tree, self.edges(), left)

    def edges(self) -> list[Edge]:
        """Every edge that leaves a path's node for an id whose probability is known, deepest first."""
        by_child: dict[int, tuple[int, Edge]] = {}
        for path in self.paths:
            nodes = self.nodes(path)[:-1]
            children = self.tree.child(nodes[:, None], path.ids)
            for depth, column in np.argwhere(children != NOBODY).tolist():
                edge = Edge(int(nodes[depth]), int(children[depth, column]), float(np.exp(path.log_p[depth, column])))
                by_child[edge.child] = (depth, edge)
        return [edge for _, edge in sorted(by_child.values(), key=lambda pair: -pair[0])]

    def reward_to_go(self, teacher: str, nodes: Ints, without: Path) -> Floats:
        """Sums of `sum_{t' >= t} (log q - log p)` at a path's children [L, K], without the path's own rollout."""
        sums = np.where(nodes == NOBODY, 0.0, self.rewards[teacher][nodes])
        own = (nodes == self.nodes(without)[1:, None]) & (nodes != NOBODY)
        return sums - own * reward_to_go(without.log_q_token(teacher) - without.log_p_token)[:, None]


def reward_to_go(rewards: Floats) -> Floats:
    """Sum of the rewards from each token on [L]."""
    return rewards[::-1].cumsum()[::-1]


def representative(correct: Sequence[bool], right: int, wrong: int, seed: Sequence[int]) -> list[int]:
    """Numbers of rollouts for the models to read, drawn by lot: at most `right` correct rollouts, then at most `wrong`
    incorrect rollouts."""
    order = np.random.default_rng(seed).permutation(len(correct)).tolist()
    kinds = ((True, right), (False, wrong))
    return [row for kind, count in kinds for row in [row for row in order if correct[row] is kind][:count]]
