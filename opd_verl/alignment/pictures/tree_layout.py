"""Places of the nodes of a question's tree, in inches from the upper left corner: a line for each path. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from opd_verl.alignment.pictures.branches import DrawnNode, DrawnTree

BOX, GAP = 1.6, 0.32
"""Width of a branching point's token, and width of the edge before a node."""
LETTER, LINE = 0.072, 17
"""Width of a letter, and the most letters in a line of a stretch."""
ROW, HEIGHT, BETWEEN = 0.56, 0.46, 0.34
"""Distance of two tokens of a branching point, height of a box, and free space between two paths."""
PROMPT, END = 0.75, 1.1
"""Widths of the first word ("prompt") and of the last ("correct" or "incorrect")."""


@dataclass(frozen=True)
class Place:
    """Left edge, middle and width of a node."""

    left: float
    middle: float
    width: float

    @property
    def right(self) -> float:
        """Right edge of the node; the edges to its children begin there."""
        return self.left + self.width


@dataclass(frozen=True)
class Layout:
    """A place for every node, and the size of the picture."""

    places: Sequence[Place]
    start: Place
    width: float
    height: float


@dataclass(frozen=True)
class Fan:
    """The tokens of one branching point."""

    line: int
    """The first path through the branching point, on whose line it stands."""
    rows: dict[int, int]
    """Node: its row. Row 0 is the token that the path takes, row 1 is below it."""


def lay_out(tree: DrawnTree) -> Layout:
    """A path's nodes stand on its line, and a branching point's other tokens above and below in the order given."""
    fans = branching_points(tree)
    lines, height = path_lines(list(tree.correct), fans)
    placed = {index: (fan.line, row) for fan in fans for index, row in fan.rows.items()}
    start = Place(0.0, lines[next(iter(tree.correct))], PROMPT)
    places: list[Place] = []
    for index, node in enumerate(tree.nodes):
        before = start if node.parent is None else places[node.parent]
        line, row = placed.get(index, (node.paths[0] if node.paths else 0, 0))
        width = BOX if node.branch else LETTER * max(map(len, stretch_lines(node)))
        places.append(Place(before.right + GAP, lines[line] + row * ROW, width))
    width = max(place.right for place in [start, *places]) + END
    return Layout(places, start, width, height)


def stretch_lines(node: DrawnNode) -> list[str]:
    """A short stretch in one or two lines; a longer stretch as its beginning, its length, and its end."""
    text = node.text.replace("\n", "⏎").replace("\t", " ").strip()
    lines = wrap(text, LINE)
    return (lines or ["␣"]) if len(lines) <= 2 else [text[:LINE], f"… {node.tokens} tokens …", text[-LINE:]]


def branching_points(tree: DrawnTree) -> list[Fan]:
    """The tokens of each branching point; below a node there is at most one branching point."""
    groups: dict[int | None, list[int]] = {}
    for index, node in enumerate(tree.nodes):
        if node.branch:
            groups.setdefault(node.parent, []).append(index)
    return [fan(tree, indices) for indices in groups.values()]


def fan(tree: DrawnTree, indices: Sequence[int]) -> Fan:
    """Line and rows of one branching point's tokens."""
    line = next(number for number in tree.correct if any(number in tree.nodes[index].paths for index in indices))
    middle = next(row for row, index in enumerate(indices) if line in tree.nodes[index].paths)
    return Fan(line, {index: row - middle for row, index in enumerate(indices)})


def path_lines(paths: Sequence[int], fans: Sequence[Fan]) -> tuple[dict[int, float], float]:
    """Distance of each path's line from the upper edge, and the height of all lines."""
    lines: dict[int, float] = {}
    edge = 0.0
    for number in paths:
        rows = [row for fan in fans if fan.line == number for row in fan.rows.values()]
        lines[number] = edge + HEIGHT / 2 - min([0, *rows]) * ROW
        edge = lines[number] + max([0, *rows]) * ROW + HEIGHT / 2 + BETWEEN
    return lines, edge - BETWEEN


def ends(nodes: Sequence[DrawnNode]) -> dict[int, list[int]]:
    """Node: the paths that end behind it."""
    going: dict[int, set[int]] = {}
    for node in nodes:
        if node.parent is not None:
            going.setdefault(node.parent, set()).update(node.paths)
    ended = {
        index: [path for path in node.paths if path not in going.get(index, ())] for index, node in enumerate(nodes)
    }
    return {index: paths for index, paths in ended.items() if paths}
