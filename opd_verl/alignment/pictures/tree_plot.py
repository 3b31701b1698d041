"""The picture of a question's tree: P_succ of each token, and the teacher's pull (Unmasking, figure 1)."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_verl.alignment.pictures.branches import DrawnNode, DrawnTree
from opd_verl.alignment.pictures.tree_layout import HEIGHT, Layout, Place, ends, lay_out, stretch_lines
from opd_verl.utils.files import whole
from opd_verl.utils.plot_style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = COLOURS[:2]
INK, FAINT, LINE = "#1b1f24", "#57606a", "#8c959f"
MARGIN, HEAD, FOOT = 0.2, 0.5, 0.95
"""Free space around the tree, above it for the title, and below it for the scale, inches."""
PULL = 0.6
"""Width of the teacher's part of a box."""
LETTERS = 10
"""Most characters shown of a token."""
SMALLEST = 0.005
"""A pull that rounds to 0.00 has no arrow."""
SIGNS = {"\n": "⏎", "\t": "⇥", " ": "␣"}
CAPTION = (
    "Colour and number: P_succ of the token, and its number of rollouts (white: too few). Arrow: the teacher's "
    "pull q - p.\nThick outline: the path takes this token. Thickness of an edge: the student's probability p."
)


def draw_tree(tree: DrawnTree, path: Path) -> None:
    """Draws, left to right, the text of the paths, and each branching point's tokens in the order of their success."""
    from matplotlib.figure import Figure

    layout = lay_out(tree)
    width, height = max(layout.width, 9.0) + 2 * MARGIN, layout.height + HEAD + FOOT + 2 * MARGIN
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-MARGIN, width - MARGIN), ylim=(height - HEAD - MARGIN, -HEAD - MARGIN))
    axes.set_axis_off()
    axes.text(0, -HEAD / 2, tree.title, fontsize=11, fontweight="bold", va="center", color=INK, parse_math=False)
    box(axes, layout.start, "#ffffff", 1.0)
    words(axes, layout.start.left + layout.start.width / 2, layout.start.middle, "prompt")
    for node, place in zip(tree.nodes, layout.places, strict=True):
        draw_edge(axes, node, layout.start if node.parent is None else layout.places[node.parent], place)
    for node, place in zip(tree.nodes, layout.places, strict=True):
        (draw_branch if node.branch else draw_stretch)(axes, node, place, largest_pull(tree))
    draw_ends(axes, tree, layout)
    draw_scale(figure, width, height)
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png", facecolor="white")


def largest_pull(tree: DrawnTree) -> float:
    """The teacher's strongest pull in the picture."""
    return max((abs(node.pull) for node in tree.nodes if math.isfinite(node.pull)), default=0.0)


def draw_edge(axes: "Axes", node: DrawnNode, before: Place, place: Place) -> None:
    """Draws the edge from a node to its child."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    middle = (before.right + place.left) / 2
    points = [
        (before.right, before.middle),
        (middle, before.middle),
        (middle, place.middle),
        (place.left, place.middle),
    ]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    thick = 1.4 if math.isnan(node.p) else 0.7 + 4.5 * node.p
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=LINE, linewidth=thick, capstyle="butt", zorder=1))


def draw_branch(axes: "Axes", node: DrawnNode, place: Place, strongest: float) -> None:
    """Draws a token of a branching point: its success on the left, the teacher's pull on the right."""
    left = Place(place.left, place.middle, place.width - PULL)
    colour, ink = success_colours(node.p_succ)
    box(axes, place, "#ffffff", 0.0)
    box(axes, left, colour, 0.0)
    box(axes, place, None, 2.2 if node.paths else 0.8)
    centre = left.left + left.width / 2
    words(
        axes,
        centre,
        place.middle - 0.1,
        token_text(node.text),
        color=ink,
        fontweight="bold" if node.paths else "normal",
    )
    below = "too few visits" if math.isnan(node.p_succ) else f"{node.p_succ:.0%} of {node.visits:.0f}"
    words(axes, centre, place.middle + 0.11, below, color=ink, fontsize=8)
    if math.isfinite(node.pull):
        draw_pull(axes, left.right, place.middle, node.pull, strongest)


def draw_pull(axes: "Axes", left: float, middle: float, pull: float, strongest: float) -> None:
    """Draws an arrow as long as the pull, and its number."""
    up = pull > 0
    colour = FAINT if abs(pull) < SMALLEST else BLUE if up else ORANGE
    number = f"{pull:+.2f}" if abs(pull) >= SMALLEST else "0.00"
    words(axes, left + 0.36, middle, number, color=colour, fontsize=8)
    if abs(pull) >= SMALLEST:
        half = max(0.34 * abs(pull) / strongest, 0.1) / 2
        ends_at = (middle - half, middle + half) if up else (middle + half, middle - half)
        look = {"arrowstyle": "-|>,head_width=0.18,head_length=0.3", "color": colour, "linewidth": 1.8}
        look |= {"shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (left + 0.12, ends_at[0]), (left + 0.12, ends_at[1]), arrowprops=look, zorder=4)


def draw_stretch(axes: "Axes", node: DrawnNode, place: Place, strongest: float) -> None:
    """Draws the text between two branching points."""
    lines = [printable(line) for line in stretch_lines(node)]
    for row, line in enumerate(lines):
        height = place.middle + (row - (len(lines) - 1) / 2) * 0.15
        words(axes, place.left + place.width / 2, height, line, color=FAINT, fontsize=8)


def token_text(text: str) -> str:
    """A token with visible white space, shortened."""
    seen = printable("".join(SIGNS.get(letter, letter) for letter in text)) or "(empty)"
    return seen if len(seen) <= LETTERS else f"{seen[: LETTERS - 1]}…"


def printable(text: str) -> str:
    """The text with a box for every character that the font does not have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(letter if font.get_char_index(ord(letter)) else "□" for letter in text)


def draw_ends(axes: "Axes", tree: DrawnTree, layout: Layout) -> None:
    """Writes behind each path whether it is correct."""
    for index, paths in ends(tree.nodes).items():
        said = [f"{'✓ correct' if tree.correct[path] else '✗ incorrect'}, path {path}" for path in paths]
        look = {"ha": "left", "fontsize": 8, "fontweight": "bold"}
        colour = BLUE if tree.correct[paths[0]] else ORANGE
        words(
            axes, layout.places[index].right + 0.08, layout.places[index].middle, "\n".join(said), color=colour, **look
        )


def success_colours(p_succ: float) -> tuple[str, str]:
    """Colours of a token's box and of the text on it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if math.isnan(p_succ):
        return "#ffffff", FAINT
    return to_hex(colormaps["cividis"](p_succ)), "#ffffff" if p_succ < 0.55 else INK


def box(axes: "Axes", place: Place, colour: str | None, line: float) -> None:
    """A box around the middle of a place."""
    from matplotlib.patches import Rectangle

    corner = (place.left, place.middle - HEIGHT / 2)
    # An outline is drawn above the filled boxes.
    patch = Rectangle(corner, place.width, HEIGHT, linewidth=line, zorder=3 if colour is None else 2)
    patch.set_edgecolor(INK if line else "none")
    patch.set_facecolor("none" if colour is None else colour)
    axes.add_patch(patch)


def words(axes: "Axes", x: float, y: float, text: str, **look: Any) -> None:
    """Writes plain text: a $ does not start a formula."""
    settings: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "zorder": 5}
    axes.text(x, y, text, parse_math=False, **settings | look)


def draw_scale(figure: "Figure", width: float, height: float) -> None:
    """Draws the scale of P_succ's colours, and the caption."""
    from matplotlib.cm import ScalarMappable

    axes = figure.add_axes((MARGIN / width, 0.52 / height, 2.4 / width, 0.14 / height))
    scale = figure.colorbar(ScalarMappable(cmap="cividis"), cax=axes, orientation="horizontal")
    scale.set_ticks([0, 0.5, 1], labels=["0%", "P_succ 50%", "100%"], fontsize=8)
    figure.text((MARGIN + 2.9) / width, 0.55 / height, CAPTION, fontsize=8, color=FAINT, va="center")
