"""Places for more rollouts: tokens at which a teacher disagrees with the student (Unmasking 2.5, appendix D).

Shapes: L tokens of a path, K ids at a position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opd_verl.alignment.tree.generation_tree import NOBODY, Ints
from opd_verl.alignment.tree.question import Floats, Path, QuestionTree


@dataclass(frozen=True)
class TargetSettings:
    """Which tokens get rollouts, and how many."""

    threshold: float = 0.02
    """A token counts if the student or the teacher gives it a higher probability."""
    first_window: int = 50
    """Tokens of the first depth window; each further window is twice as long as the window before."""
    by_gradient: int = 5
    """Tokens of a path, window and teacher with the largest gradient of KL(p || q)."""
    by_difference: int = 5
    """Tokens of a path, window and teacher with the largest |q - p|."""
    enough: int = 100
    """Visits that each target should have (N_min)."""
    per_request: int = 10
    """Rollouts that one request samples from a prefix; missing rollouts are rounded up to a multiple of it."""


@dataclass(frozen=True)
class Target:
    """A token at a node of a path."""

    question: int
    path: int
    depth: int
    """Depth of the node: tokens before the target."""
    token: int
    rank: int
    """Place in its list, from 0."""


def depth_windows(length: int, first: int) -> list[range]:
    """0-based depths of windows that double: tokens 1-50, 51-150, 151-350, ... The last window ends at `length`.

    `depth_windows(200, 50)` is `[range(0, 50), range(50, 150), range(150, 200)]`.
    """
    windows, begin, width = list[range](), 0, first
    while begin < length:
        windows.append(range(begin, min(begin + width, length)))
        begin, width = begin + width, 2 * width
    return windows


def gradient_size(log_p: Floats, log_q: Floats, known: np.ndarray) -> Floats:
    """|p (log p - log q - KL)|, the size of the gradient of KL(p || q) by each logit [L, K] (appendix D)."""
    p = np.where(known, np.exp(log_p), 0.0)
    apart = np.where(known, log_p - log_q, 0.0)
    return np.abs(p * (apart - (p * apart).sum(-1, keepdims=True)))


def path_targets(question: QuestionTree, number: int, window: range, settings: TargetSettings) -> list[Target]:
    """The targets of all teachers in one window of path `number`, best first, without duplicates."""
    path = question.paths[number]
    rows = slice(window.start, min(window.stop, len(path.tokens)))
    ranks: dict[tuple[int, int], int] = {}
    for teacher in path.log_q:
        for rank, (row, token) in enumerate(_ranked(path, teacher, rows, settings)):
            place = (rows.start + row, token)
            ranks[place] = min(rank, ranks.get(place, rank))
    return [
        Target(question.number, number, depth, token, rank)
        for (depth, token), rank in sorted(ranks.items(), key=lambda ranked: (ranked[1], ranked[0]))
    ]


def _ranked(path: Path, teacher: str, rows: slice, settings: TargetSettings) -> list[tuple[int, int]]:
    """(row, token) by gradient and by difference in turn; each is followed by its strongest rival."""
    ids, log_p, log_q = path.ids[rows], path.log_p[rows], path.log_q[teacher][rows]
    known = ids != NOBODY
    p, q = (np.where(known, np.exp(side), 0.0) for side in (log_p, log_q))
    counts = np.maximum(p, q) > settings.threshold
    gradient = np.where(counts, gradient_size(log_p, log_q, known), -1.0)
    difference = np.where(counts, np.abs(q - p), -1.0)
    lists = [
        _highest(score, count)
        for score, count in ((gradient, settings.by_gradient), (difference, settings.by_difference))
    ]
    chosen = dict.fromkeys(place for pair in _in_turn(*lists) for place in _with_rival(pair, gradient))
    return [(row, int(ids[row, column])) for row, column in chosen]


def _highest(score: Floats, count: int) -> list[tuple[int, int]]:
    """The places of the `count` highest scores; a negative score marks a token that does not count."""
    flat = np.argsort(-score, axis=None, kind="stable")[:count]
    places = np.stack(np.unravel_index(flat, score.shape), -1).tolist()
    return [(row, column) for row, column in places if score[row, column] >= 0.0]


def _in_turn(*lists: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for place in range(max(map(len, lists))):
        yield from (places[place] for places in lists if place < len(places))


def _with_rival(place: tuple[int, int], gradient: Floats) -> list[tuple[int, int]]:
    """A token, and its node's other token with the largest gradient: a single child has no cosine."""
    row, column = place
    others = gradient[row].copy()
    others[column] = -1.0
    rival = int(others.argmax())
    return [place, (row, rival)] if others[rival] >= 0.0 else [place]


def missing(question: QuestionTree, targets: Sequence[Target], settings: TargetSettings) -> Ints:
    """Rollouts that each target lacks, a multiple of `per_request`."""
    nodes = [question.nodes(path) for path in question.paths]
    at = np.array([nodes[target.path][target.depth] for target in targets], np.int64)
    children = question.tree.child(at, np.array([target.token for target in targets], np.int64))
    lack = np.maximum(settings.enough - question.estimates().of(children)[1], 0.0)
    return (np.ceil(lack / settings.per_request) * settings.per_request).astype(np.int64)
