"""Targeted rollouts, one depth window of all questions at a time, shallow windows first.

A window's targets are chosen on the trees that the shallower windows left: rollouts that already reached a deep node
are not sampled again.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opd_verl.alignment.tree.generation_tree import PackedRollouts
from opd_verl.alignment.tree.question import QuestionTree
from opd_verl.alignment.tree.targets import Target, TargetSettings, depth_windows, missing, path_targets


@dataclass(frozen=True)
class Order:
    """Rollouts that are wanted behind one token."""

    target: Target
    count: int


@dataclass(frozen=True, eq=False)
class Launched:
    """Rollouts sampled for a window's orders."""

    rollouts: Mapping[int, PackedRollouts]
    """Rollouts by question number."""
    count: int
    """Rollouts that were sampled; paths that had ended already are not counted."""
    seconds: float


Launch = Callable[[int, Callable[[], Sequence[Order]]], Launched]
"""(window, function that makes its orders) -> rollouts; a finished window makes no orders."""


@dataclass(frozen=True)
class Budget:
    """The most that targeted rollouts may cost; None: no limit."""

    rollouts: int | None = None
    minutes: float | None = None

    def left(self, used: int, seconds: float, initial: tuple[int, float]) -> float:
        """Rollouts that may still be launched.

        initial: number and seconds of the initial rollouts, whose rate is the first guess for the targeted ones.
        """
        limits = [float("inf")]
        if self.rollouts is not None:
            limits.append(self.rollouts - used)
        if self.minutes is not None:
            rate = (used + initial[0]) / max(seconds + initial[1], 1e-6)
            limits.append((60.0 * self.minutes - seconds) * rate)
        return max(min(limits), 0.0)


@dataclass(frozen=True)
class Spent:
    """Targeted rollouts so far."""

    rollouts: int
    seconds: float
    windows: int


def enrich(
    questions: Sequence[QuestionTree],
    launch: Launch,
    settings: TargetSettings,
    budget: Budget | None = None,
    initial: tuple[int, float] = (0, 0.0),
    tell: Callable[[str], None] = lambda text: None,
) -> Spent:
    """Adds targeted rollouts to every question's tree.

    Args:
        initial: number and seconds of the initial rollouts: the first guess of a rate.
        tell: receives a line before each window: its rollouts, and the most that deeper windows may take.
    """
    allowed, spent = budget or Budget(), Spent(0, 0.0, 0)
    windows = depth_windows(longest(questions), settings.first_window)
    for number, window in enumerate(windows):
        # Default arguments fix this window's values: a closure would read the loop's last ones.
        def wanted(number: int = number, window: range = window, spent: Spent = spent) -> Sequence[Order]:
            # An equal share of the remaining budget for each window, so that deep windows get rollouts too.
            share = allowed.left(spent.rollouts, spent.seconds, initial) / (len(windows) - number)
            affordable = within(orders(questions, window, settings), share)
            rate = (spent.rollouts + initial[0]) / max(spent.seconds + initial[1], 1e-6)
            tell(forecast(window, affordable, expected(questions, windows[number + 1 :], settings), rate))
            return affordable

        done = launch(number, wanted)
        add(questions, done)
        spent = Spent(spent.rollouts + done.count, spent.seconds + done.seconds, number + 1)
    return spent


def add(questions: Sequence[QuestionTree], done: Launched) -> None:
    """Counts rollouts in their questions' trees."""
    for question in questions:
        if question.number in done.rollouts:
            question.tree.add(done.rollouts[question.number])


def forecast(window: range, ordered: Sequence[Order], later: int, rate: float) -> str:
    """A line with the rollouts of a window and of deeper ones, and their time at this rate (rollouts a second)."""

    def cost(count: int) -> str:
        return f"{count:,} rollouts" + (f" ({count / rate / 60:.1f} min)" if rate > 0 else "")

    places = f"tokens {window.start + 1} to {window.stop}"
    now = f"{len(ordered)} targets want {cost(sum(order.count for order in ordered))}"
    return f"{places}: {now}; deeper windows at most {cost(later)} more"


def longest(questions: Sequence[QuestionTree]) -> int:
    """Tokens of the longest path."""
    return max((len(path.tokens) for question in questions for path in question.paths), default=0)


def orders(questions: Sequence[QuestionTree], window: range, settings: TargetSettings) -> list[Order]:
    """Rollouts that a window's targets lack; the first target of every list before the second of any."""
    ordered = [order for question in questions for order in _question_orders(question, window, settings)]
    return sorted(ordered, key=lambda order: _priority(order.target))


def _priority(target: Target) -> tuple[int, int, int, int]:
    return target.rank, target.question, target.path, target.depth


def _question_orders(question: QuestionTree, window: range, settings: TargetSettings) -> Iterator[Order]:
    """The orders of one question; a node that several paths share is ordered once."""
    targets, seen = list[Target](), set[tuple[int, int]]()
    for number, path in enumerate(question.paths):
        nodes = question.nodes(path)
        for target in path_targets(question, number, window, settings):
            place = (int(nodes[target.depth]), target.token)
            if place not in seen:
                seen.add(place)
                targets.append(target)
    for target, count in zip(targets, missing(question, targets, settings).tolist(), strict=True):
        if count:
            yield Order(target, count)


def within(wanted: Sequence[Order], allowed: float) -> list[Order]:
    """The first orders that `allowed` rollouts pay for."""
    total = np.cumsum([order.count for order in wanted])
    return list(wanted[: int(np.searchsorted(total, allowed, side="right"))])


def expected(questions: Sequence[QuestionTree], windows: Sequence[range], settings: TargetSettings) -> int:
    """Most rollouts that these windows can take, on the present trees."""
    return sum(order.count for window in windows for order in orders(questions, window, settings))


def say(text: str) -> None:
    """Prints to stderr, so that no progress bar on stdout hides the text."""
    print(text, file=sys.stderr, flush=True)
