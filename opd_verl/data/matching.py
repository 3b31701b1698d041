"""Which questions are the same: equal once normalised, or alike in their word n-grams (exact, by prefix filtering).

Similarity is Jaccard's, `|a & b| / |a | b|`, of the sets of n-grams of words. Two sets that reach the threshold t share
a gram among the first `|a| - ceil(t |a|) + 1` of each, in any order that both use: with the rarest grams first an index
of these few finds every pair, and only pairs it finds are compared (Chaudhuri et al. 2006; Bayardo et al. 2007).
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

WORDS_PER_GRAM = 5
Grams = NDArray[np.int64]
"""Hashes of a question's distinct n-grams, the rarest first."""

_SPACING = re.compile(
    r"\\(?:[,;:!> ]|(?:q?quad|displaystyle|left|right|text|textbf|mathrm|mathbf|operatorname)\b)|[~$]"
)
_DELIMITERS = re.compile(r"\\[()\[\]]")
_ONE_IN_BRACES = re.compile(r"\{\s*([a-z0-9])\s*\}")
_WORD = re.compile(r"\\[a-z]+|\d*\.?\d+|[^\W\d_]+|[^\s.,;:?\"`\u201c\u201d]")


def words(question: str) -> list[str]:
    """The question's words: lower case, NFKC, no white space, LaTeX spacing, `$` or punctuation.

    Signs that carry mathematics stay words of their own: `2-3` is not `2+3`, `5!` not `5` and `f'` not `f`.
    """
    text = unicodedata.normalize("NFKC", question).casefold().replace("\u2019", "'")
    text = _SPACING.sub(" ", _DELIMITERS.sub(" ", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _WORD.findall(_ONE_IN_BRACES.sub(r" \1 ", text)) or ["".join(question.split())]


def normalise(question: str) -> str:
    """One text for all the ways to write the same question."""
    return " ".join(words(question))


def grams(question: str, size: int = WORDS_PER_GRAM) -> Grams:
    """The question's distinct n-grams, hashed, in no order; all its words as one gram if there are fewer."""
    found = words(question)
    windows = {hash(tuple(found[start : start + size])) for start in range(max(1, len(found) - size + 1))}
    return np.fromiter(windows, np.int64, len(windows))


def rarest_first(sets: Sequence[Grams]) -> list[Grams]:
    """Every set in the one order of all: by how often a gram occurs (counted by its hash's lowest 20 bits)."""
    bits = np.int64(2**20 - 1)
    counts = np.bincount(np.concatenate([*sets, np.zeros(0, np.int64)]) & bits, minlength=2**20)
    return [found[np.lexsort((found, counts[found & bits]))] for found in sets]


def jaccard(left: Grams, right: Grams) -> float:
    """Shared grams over all grams, 0 to 1."""
    shared = np.intersect1d(left, right, assume_unique=True).size
    return shared / (left.size + right.size - shared)


class NearIndex:
    """Sets of grams, all in the order of `rarest_first`, and which of them is most like another."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sets: dict[int, Grams] = {}
        self._with_gram: defaultdict[int, list[int]] = defaultdict(list)

    def _prefix(self, found: Grams) -> list[int]:
        return found[: found.size - math.ceil(self.threshold * found.size - 1e-9) + 1].tolist()

    def add(self, place: int, found: Grams) -> None:
        """Takes in a set under a number of its own."""
        self._sets[place] = found
        for gram in self._prefix(found):
            self._with_gram[gram].append(place)

    def best(self, found: Grams) -> tuple[int, float] | None:
        """Number and similarity of the most similar set at or above the threshold, the first of several; or None."""
        places = {place for gram in self._prefix(found) for place in self._with_gram.get(gram, ())}
        scores = [(jaccard(found, self._sets[place]), -place) for place in places]
        score, place = max(scores, default=(0.0, 0))
        return (-place, score) if scores and score >= self.threshold - 1e-9 else None


@dataclass(frozen=True)
class Match:
    """Why a question is a duplicate."""

    kind: str
    """"exact" or "near"."""
    place: int
    """Of the question it matches: in `against`, or behind these in the questions themselves."""
    score: float
    """1.0 for an exact match, else the similarity."""


def duplicates(
    questions: Sequence[str], against: Sequence[str], threshold: float | None, internal: bool
) -> dict[int, Match]:
    """The questions that also are in `against`, or earlier among the questions that stay.

    Args:
        threshold: similarity from which two are near-duplicates, above 0 and at most 1; None for exact matches alone.
        internal: whether duplicates within `questions` count.

    Returns:
        place in `questions` -> what it matches. Those left hold no two that match, nor one that `against` has.
    """
    every = [*against, *questions]
    sets = rarest_first([grams(text) for text in tqdm(every, unit=" n-grams", disable=None)]) if threshold else []
    exact: dict[str, int] = {}
    near = NearIndex(threshold or 1.0)
    found: dict[int, Match] = {}
    for place, text in enumerate(tqdm(every, unit=" compared", disable=None)):
        key, inside = normalise(text), place - len(against)
        if inside >= 0 and (match := _match(key, exact, near, sets[place] if sets else None)):
            found[inside] = match
        elif inside < 0 or internal:
            exact.setdefault(key, place)
            if sets:
                near.add(place, sets[place])
    return found


def _match(key: str, exact: dict[str, int], near: NearIndex, found: Grams | None) -> Match | None:
    if key in exact:
        return Match("exact", exact[key], 1.0)
    best = None if found is None else near.best(found)
    return best and Match("near", *best)
