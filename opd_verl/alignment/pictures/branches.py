"""The drawn tree of one question: a few branching points with their tokens, and the text between them. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import nan
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from opd_verl.utils.plot_style import short

MOST_POINTS, MOST_CHILDREN = 6, 4
SHOWN = ("path", "correct", "depth", "token", "support", "p", "q", "p_succ", "visits", "success_range", "decision")
DecodeToken = Callable[[int], str]


class NodeRow(TypedDict):
    """A row of the node table: the columns of SHOWN."""

    path: int
    correct: bool
    depth: int
    token: int
    support: list[int]
    p: list[float]
    q: list[float]
    p_succ: list[float]
    visits: list[float]
    success_range: float
    decision: bool


@dataclass(frozen=True)
class DrawnNode:
    """A token of a branching point, or a stretch of tokens between two of them."""

    parent: int | None
    """The parent's place in the list; None: the node follows the prompt. Parents come before their children."""
    text: str
    paths: tuple[int, ...]
    """Representative paths that run through the node; empty: only other rollouts do."""
    tokens: int = 1
    """Number of tokens in a stretch."""
    branch: bool = False
    """Whether the node is a token of a shown branching point."""
    p: float = nan
    q: float = nan
    """Student's and teacher's probability; NaN where unknown, as in a stretch."""
    p_succ: float = nan
    visits: float = nan

    @property
    def pull(self) -> float:
        """Probability that the teacher adds to the token's, `q - p`."""
        return self.q - self.p


@dataclass(frozen=True)
class DrawnTree:
    """The nodes of one question's picture."""

    title: str
    nodes: Sequence[DrawnNode]
    correct: dict[int, bool]
    """Shown path: whether it is correct."""


def question_tree(
    nodes: pa.Table,
    question: int,
    teacher: str,
    decode: DecodeToken,
    paths: Sequence[int] | None = None,
    points: int = MOST_POINTS,
) -> DrawnTree:
    """The branching points with the largest success range on some paths of a question, of each path in turn.

    Args:
        nodes: the node table.
        question: row of the prompts file.
        teacher: the teacher whose q is shown.
        decode: text of a token.
        paths: numbers of the paths to show; None: the first correct and the first incorrect one.
        points: most branching points to show.

    Raises ValueError if the table has no such question or teacher, KeyError if the question has no such path.
    """
    traces = path_rows(nodes, question, teacher)
    correct = {number: bool(trace[0]["correct"]) for number, trace in traces.items()}
    wanted = one_of_each(correct) if paths is None else list(paths)
    kept = {number: traces[number] for number in wanted}
    states = state_numbers(kept)
    shown, total = largest(kept, states, points)
    builder = TreeBuilder(kept, states, shown, decode)
    builder.grow(wanted, 0, None)
    said = f"{len(shown)} of {total} branching points, each path's largest ranges of P_succ"
    title = f"Question {question}, teacher {short(teacher)}: {said}"
    return DrawnTree(title, builder.nodes, {number: correct[number] for number in kept})


def path_rows(nodes: pa.Table, question: int, teacher: str) -> dict[int, list[NodeRow]]:
    """The rows of each path of a question, by position."""
    chosen = nodes.filter((pc.field("question") == question) & (pc.field("teacher") == teacher))
    rows: list[NodeRow] = chosen.select(list(SHOWN)).to_pylist()
    if not rows:
        raise ValueError(f"the node table has no rows of question {question} and teacher {teacher!r}")
    traces: dict[int, list[NodeRow]] = {}
    for row in sorted(rows, key=lambda row: (row["path"], row["depth"])):
        traces.setdefault(row["path"], []).append(row)
    return traces


def one_of_each(correct: dict[int, bool]) -> list[int]:
    """The first correct path and the first incorrect path, if they exist."""
    # Reversed, so that the first path of a kind is the last to be written.
    first = {kind: number for number, kind in reversed(correct.items())}
    return [first[kind] for kind in (True, False) if kind in first]


def state_numbers(traces: dict[int, list[NodeRow]]) -> dict[int, list[int]]:
    """A number for the state before each token of each path, and for its end; equal beginnings have equal numbers."""
    known: dict[tuple[int, int], int] = {}
    states: dict[int, list[int]] = {}
    for number, trace in traces.items():
        states[number] = [0]
        for row in trace:
            step = (states[number][-1], row["token"])
            states[number].append(known.setdefault(step, len(known) + 1))
    return states


def largest(traces: dict[int, list[NodeRow]], states: dict[int, list[int]], points: int) -> tuple[set[int], int]:
    """The states with the largest success range, and the number of decision points; a shared point counts once.

    Every path's largest point comes first, then every path's second largest, so that each path shows some.
    """
    ordered = []
    for number, trace in traces.items():
        # The state at the path's end has no row.
        ranges = [
            (-row["success_range"], state) for state, row in zip(states[number], trace, strict=False) if row["decision"]
        ]
        ordered.append([state for _, state in sorted(ranges)])
    in_turn = [state for places in zip_longest(*ordered) for state in places if state is not None]
    distinct = list(dict.fromkeys(in_turn))
    return set(distinct[:points]), len(distinct)


@dataclass
class TreeBuilder:
    """Makes the list of nodes from the traces of the paths, rows by position."""

    traces: dict[int, list[NodeRow]]
    states: dict[int, list[int]]
    shown: set[int]
    decode: DecodeToken
    nodes: list[DrawnNode] = field(default_factory=list)

    def add(self, node: DrawnNode) -> int:
        """Appends a node; returns its place in the list."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def grow(self, paths: Sequence[int], depth: int, parent: int | None) -> None:
        """Adds the nodes behind a state that these paths share: a stretch, then a branching point, fork or end."""
        end = depth
        while not self.stops(paths, end):
            end += 1
        if end > depth:
            stretch = self.traces[paths[0]][depth:end]
            text = "".join(self.decode(row["token"]) for row in stretch)
            parent = self.add(DrawnNode(parent, text, tuple(paths), tokens=len(stretch)))
        going = [number for number in paths if end < len(self.traces[number])]
        if going and self.states[going[0]][end] in self.shown:
            self.branch(going, end, parent)
        else:
            for group in self.groups(going, end).values():
                self.grow(group, end, parent)

    def stops(self, paths: Sequence[int], at: int) -> bool:
        """Whether a stretch ends here."""
        ended = any(at == len(self.traces[number]) for number in paths)
        return ended or self.states[paths[0]][at] in self.shown or len(self.groups(paths, at)) > 1

    def groups(self, paths: Sequence[int], at: int) -> dict[int, list[int]]:
        """Token: the paths that take it."""
        by_token: dict[int, list[int]] = {}
        for number in paths:
            by_token.setdefault(self.traces[number][at]["token"], []).append(number)
        return by_token

    def branch(self, paths: Sequence[int], depth: int, parent: int | None) -> None:
        """Adds the tokens of a branching point; each path goes on behind the token that it takes."""
        row, taken = self.traces[paths[0]][depth], self.groups(paths, depth)
        for token in children(row, list(taken)):
            through = taken.get(token, [])
            place = self.add(child(row, token, parent, self.decode(token), tuple(through)))
            if through:
                self.grow(through, depth + 1, place)


def children(row: NodeRow, taken: list[int]) -> list[int]:
    """At most 4 tokens, best first: tokens that paths take, then the student's or teacher's most probable tokens."""
    likely = {token: max(p, q) for token, p, q in zip(row["support"], row["p"], row["q"], strict=True)}
    others = sorted(likely.keys() - set(taken), key=lambda token: (-likely[token], token))
    kept = taken + others[: max(MOST_CHILDREN - len(taken), 0)]
    success = dict(zip(row["support"], row["p_succ"], strict=True))
    return sorted(kept, key=lambda token: (-success.get(token, -1.0), token))


def child(row: NodeRow, token: int, parent: int | None, text: str, paths: tuple[int, ...]) -> DrawnNode:
    """A token of a branching point; a token with too few visits has no numbers."""
    if token not in row["support"]:
        return DrawnNode(parent, text, paths, branch=True)
    place = row["support"].index(token)
    p, q, p_succ, visits = (side[place] for side in (row["p"], row["q"], row["p_succ"], row["visits"]))
    return DrawnNode(parent, text, paths, branch=True, p=p, q=q, p_succ=p_succ, visits=visits)
