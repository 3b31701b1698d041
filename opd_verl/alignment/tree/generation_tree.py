"""The generation tree of one question: every rollout's path, as arrays and counts; no object per node (Unmasking 2.1).

A node is the beginning of a response, known by a number; node 0 is the empty beginning. A rollout is *launched* behind
a prefix that it was given (0 tokens for an initial rollout), and *free* from there on: the student chose only
these tokens.

Shapes: N nodes, B rollouts, L tokens of a rollout. 40 bytes a node.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
ROOT, NOBODY = 0, -1
"""The empty beginning's node, and the mark for "no such node" and "no such token"."""
COUNTS = ("visits", "successes", "free_visits", "free_successes", "launched", "launched_successes")


@dataclass(frozen=True, eq=False)
class PackedRollouts:
    """Judged responses, joined in one array."""

    tokens: Ints
    """Tokens of all paths, with the given prefixes."""
    ends: Ints
    """[B] end of each path in `tokens`."""
    given: Ints
    """[B] length of each path's given prefix, tokens."""
    correct: NDArray[np.bool_]

    @classmethod
    def of(cls, paths: Sequence[Ints], given: Sequence[int], correct: Sequence[bool]) -> "PackedRollouts":
        """Packs one array for each path."""
        ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        # The empty array in front lets np.concatenate take no paths at all, and fixes the type then.
        flat = np.concatenate([np.zeros(0, np.int32), *paths])
        return cls(flat, ends, np.array(given, np.int64), np.array(correct, bool))

    @property
    def starts(self) -> Ints:
        """[B] beginning of each path in `tokens`."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]]) if len(self.ends) else self.ends

    @property
    def depths(self) -> Ints:
        """Position of every token in its path, from 0."""
        return np.arange(len(self.tokens)) - np.repeat(self.starts, self.ends - self.starts)


class GenerationTree:
    """Six counts for every node, int32 [N].

    `visits` and `successes` count all rollouts whose path goes through the node, as the paper does. `free_visits` and
    `free_successes` leave out the rollouts that were launched below the node; `launched` and `launched_successes` count
    the rollouts that were launched exactly at the node.
    """

    def __init__(self) -> None:
        self.counts = {name: np.zeros(1, np.int32) for name in COUNTS}
        self.parent = np.full(1, NOBODY, np.int32)
        # An edge's key is node * 2^32 + token: one sorted int64 array and a binary search take the place of a
        # dictionary per node, at 12 bytes an edge. Token ids and node numbers stay below 2^31.
        self._keys, self._children = np.zeros(0, np.int64), np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.parent, self._keys, self._children, *self.counts.values()))

    def add(self, rollouts: PackedRollouts) -> None:
        """Counts every rollout at each node of its path."""
        nodes = self._walk(rollouts, grow=True)
        # nodes[i] is the node behind token i, so its depth is one more than the token's.
        depth = rollouts.depths + 1
        rows = np.repeat(np.arange(len(rollouts.ends)), rollouts.ends - rollouts.starts)
        given, correct = rollouts.given[rows], rollouts.correct[rows]
        here = {"visits": np.ones(len(nodes), bool), "free_visits": given <= depth, "launched": given == depth}
        at_root = rollouts.given == 0
        for name, counted in here.items():
            successes = name.replace("visits", "successes") if "visits" in name else f"{name}_successes"
            self._count(name, nodes[counted])
            self._count(successes, nodes[counted & correct])
            # No token leads to the root, so the walk above never counts it.
            began = np.ones_like(at_root) if name == "visits" else at_root
            self.counts[name][ROOT] += began.sum()
            self.counts[successes][ROOT] += (began & rollouts.correct).sum()

    def locate(self, rollouts: PackedRollouts) -> Ints:
        """The node behind every token of `rollouts.tokens`; NOBODY if no rollout has visited it."""
        return self._walk(rollouts, grow=False)

    def child(self, nodes: Ints, tokens: Ints) -> Ints:
        """The nodes behind these tokens at these nodes; NOBODY if no rollout has been there, or the token is NOBODY."""
        known = np.broadcast_to((nodes != NOBODY) & (tokens != NOBODY), np.broadcast_shapes(nodes.shape, tokens.shape))
        return np.where(known, self._find(_keys(nodes, tokens)), NOBODY)

    def children(self, node: int) -> tuple[Ints, Ints]:
        """Tokens that rollouts took at a node, ascending, and the nodes behind them."""
        first, end = np.searchsorted(self._keys, [node << 32, (node + 1) << 32])
        return self._keys[first:end] & 0xFFFFFFFF, self._children[first:end]

    def _count(self, name: str, nodes: Ints) -> None:
        # bincount, since `counts[nodes] += 1` counts a node that is named several times only once.
        self.counts[name] += np.bincount(nodes, minlength=len(self)).astype(np.int32)

    def _walk(self, rollouts: PackedRollouts, grow: bool) -> Ints:
        """The node behind every token, depth by depth for all rollouts. `grow`: makes unknown nodes; else NOBODY."""
        behind = np.full(len(rollouts.tokens), NOBODY, np.int32)
        at, size = np.full(len(rollouts.ends), ROOT, np.int64), len(self)
        new_keys: list[Ints] = [np.zeros(0, np.int64)]
        for rows, places in _levels(rollouts):
            keys = _keys(at[rows], rollouts.tokens[places])
            nodes = self.child(at[rows], rollouts.tokens[places])
            # New nodes get numbers above `size` here and enter the tree after the walk. The next depth need not
            # search below them: below a new node every node is new too.
            if grow and (unknown := nodes == NOBODY).any():
                fresh, which = np.unique(keys[unknown], return_inverse=True)
                nodes[unknown] = size + which
                new_keys.append(fresh)
                size += len(fresh)
            behind[places] = at[rows] = nodes
        self._extend(np.concatenate(new_keys))
        return behind

    def _find(self, keys: Ints) -> Ints:
        if not len(self._keys):
            return np.full(keys.shape, NOBODY, np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._children[place], NOBODY)

    def _extend(self, keys: Ints) -> None:
        """Adds new nodes, numbered in the order of their keys."""
        if not len(keys):
            return
        numbers = np.arange(len(self), len(self) + len(keys), dtype=np.int32)
        self.parent = np.concatenate([self.parent, (keys >> 32).astype(np.int32)])
        self.counts = {
            name: np.concatenate([count, np.zeros(len(keys), np.int32)]) for name, count in self.counts.items()
        }
        every, children = np.concatenate([self._keys, keys]), np.concatenate([self._children, numbers])
        order = np.argsort(every, kind="stable")
        self._keys, self._children = every[order], children[order]


def _keys(nodes: Ints, tokens: Ints) -> Ints:
    return (nodes.astype(np.int64) << 32) | tokens.astype(np.int64)


def _levels(rollouts: PackedRollouts) -> Iterator[tuple[Ints, Ints]]:
    """For each depth: the rollouts that reach it, and the place of their token at this depth."""
    lengths = rollouts.ends - rollouts.starts
    order = np.argsort(-lengths, kind="stable")
    # Longest rollouts first: the rollouts that reach a depth are a prefix of `order`, found by binary search.
    for depth, going in enumerate(np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")):
        rows = order[:going]
        yield rows, rollouts.starts[rows] + depth
