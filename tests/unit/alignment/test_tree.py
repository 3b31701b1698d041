"""The generation tree against a dictionary of prefixes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_verl.alignment.tree.generation_tree import COUNTS, NOBODY, ROOT, GenerationTree, PackedRollouts

PATHS = st.lists(st.integers(0, 3), max_size=6).map(tuple)
Rollout = tuple[tuple[int, ...], int, bool]


@st.composite
def rollout(draw: st.DrawFn) -> Rollout:
    path = draw(PATHS)
    return path, draw(st.integers(0, len(path))), draw(st.booleans())


def grown(batches: list[list[Rollout]]) -> GenerationTree:
    tree = GenerationTree()
    for batch in batches:
        paths = [np.array(path, np.int32) for path, _, _ in batch]
        tree.add(PackedRollouts.of(paths, [given for _, given, _ in batch], [correct for _, _, correct in batch]))
    return tree


def counted(batches: list[list[Rollout]]) -> dict[str, Counter[tuple[int, ...]]]:
    """By the definition: every prefix of every path."""
    actual: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in COUNTS}
    for path, given_tokens, correct in (row for batch in batches for row in batch):
        for depth in range(len(path) + 1):
            node = path[:depth]
            for name, counts in (
                ("visits", True),
                ("free_visits", given_tokens <= depth),
                ("launched", given_tokens == depth),
            ):
                successes = {"visits": "successes", "free_visits": "free_successes", "launched": "launched_successes"}[
                    name
                ]
                actual[name][node] += counts
                actual[successes][node] += counts and correct
    return actual


def node_of(tree: GenerationTree, path: tuple[int, ...]) -> int:
    node = ROOT
    for token in path:
        (node,) = tree.child(np.array([node]), np.array([token])).tolist()
    return node


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(rollout(), max_size=12), max_size=4))
def test_counts_equal_brute_force(batches: list[list[Rollout]]) -> None:
    tree, expected = grown(batches), counted(batches)
    known = {path[:depth] for batch in batches for path, _, _ in batch for depth in range(len(path) + 1)} | {()}
    nodes = {path: node_of(tree, path) for path in known}
    assert len(tree) == len(known) == len(set(nodes.values()))
    for name in COUNTS:
        assert {path: int(tree.counts[name][node]) for path, node in nodes.items()} == {
            path: expected[name][path] for path in known
        }
    for path, node in nodes.items():
        tokens, children = tree.children(node)
        actual = {other[-1]: nodes[other] for other in known if len(other) == len(path) + 1 and other[:-1] == path}
        assert dict(zip(tokens.tolist(), children.tolist(), strict=True)) == actual
        assert not path or tree.parent[node] == nodes[path[:-1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(rollout(), min_size=1, max_size=12), st.integers(0, 12))
def test_batches_and_their_order_change_no_count(batch: list[Rollout], cut: int) -> None:
    whole, parts = grown([batch]), grown([batch[cut:], batch[:cut]])
    paths = {path[:depth] for path, _, _ in batch for depth in range(len(path) + 1)}
    for name in COUNTS:
        assert all(
            whole.counts[name][node_of(whole, item)] == parts.counts[name][node_of(parts, item)] for item in paths
        )


def test_where_nobody_came_by() -> None:
    tree = grown([[((1, 2), 0, True)]])
    asked = PackedRollouts.of([np.array([1, 2, 3], np.int32), np.array([2], np.int32)], [0, 0], [True, True])
    assert tree.locate(asked).tolist() == [node_of(tree, (1,)), node_of(tree, (1, 2)), NOBODY, NOBODY]
    assert len(tree) == 3, "looking does not make nodes"
    assert tree.child(np.array([NOBODY, 0]), np.array([1, NOBODY])).tolist() == [NOBODY, NOBODY]
    assert GenerationTree().child(np.array([0]), np.array([1])).tolist() == [NOBODY]


def test_a_million_nodes_take_40_megabytes() -> None:
    """Long rollouts that part early: nearly every token is a node of its own."""
    generator, tree = np.random.default_rng(0), GenerationTree()
    for _ in range(4):
        paths = [generator.integers(0, 150_000, 1000).astype(np.int32) for _ in range(250)]
        tree.add(PackedRollouts.of(paths, [0] * 250, [True] * 250))
    assert len(tree) == pytest.approx(1_000_000, rel=1e-3)
    assert tree.nbytes <= 40 * len(tree)
