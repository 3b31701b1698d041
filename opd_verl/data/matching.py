"""Finds questions that are the same: equal once normalised, or similar in their word n-grams.

The similarity of two questions is the Jaccard index of their sets of n-grams, `|a & b| / |a | b|`. The search is exact.
Two sets with a similarity of at least t share a gram among the first `|a| - ceil(t |a|) + 1` grams of each, in any
common order. With the rarest grams first, an index of these few grams finds every such pair, and only these pairs are
compared (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007).
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
"""Hashes of a question's distinct n-grams."""

_SPACING = re.compile(
    r"\\(?:[,;:!> ]|(?:q?quad|displaystyle|left|right|text|textbf|mathrm|mathbf|operatorname)\b)|[~$]"
)
_DELIMITERS = re.compile(r"\\[()\[\]]")
_ONE_IN_BRACES = re.compile(r"\{\s*([a-z0-9])\s*\}")
_WORD = re.compile(r"\\[a-z]+|\d*\.?\d+|[^\W\d_]+|[^\s.,;:?\"`\u201c\u201d]")


def words(question: str) -> list[str]:
    """Splits a question into words: lower case, NFKC, no white space, LaTeX spacing, `$` or punctuation.

    A mathematical sign stays a word of its own: `2-3` is not `2+3`, `5!` is not `5`, and `f'` is not `f`.
    """
    text = unicodedata.normalize("NFKC", question).casefold().replace("\u2019", "'")
    text = _SPACING.sub(" ", _DELIMITERS.sub(" ", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _WORD.findall(_ONE_IN_BRACES.sub(r" \1 ", text)) or ["".join(question.split())]


def normalise(question: str) -> str:
    """Returns one text for all ways to write the same question."""
    return " ".join(words(question))


def grams(question: str, size: int = WORDS_PER_GRAM) -> Grams:
    """Hashes the question's distinct n-grams, in no order; a question with fewer words is one gram."""
    text = words(question)
    windows = {hash(tuple(text[start : start + size])) for start in range(max(1, len(text) - size + 1))}
    return np.fromiter(windows, np.int64, len(windows))


def rarest_first(sets: Sequence[Grams]) -> list[Grams]:
    """Sorts the grams of every set by how often a gram occurs in all sets, ties by hash."""
    # Counted by the lowest 20 bits of the hash: a table of 8 MB for any number of grams. Two grams that share a
    # count make the search slower but not wrong: any order that all sets use finds every pair.
    bits = np.int64(2**20 - 1)
    counts = np.bincount(np.concatenate([*sets, np.zeros(0, np.int64)]) & bits, minlength=2**20)
    return [hashes[np.lexsort((hashes, counts[hashes & bits]))] for hashes in sets]


def jaccard(left: Grams, right: Grams) -> float:
    """Returns the shared grams over all grams, 0 to 1."""
    shared = np.intersect1d(left, right, assume_unique=True).size
    return shared / (left.size + right.size - shared)


class NearIndex:
    """Finds the most similar set of grams among many; all sets are in the order of `rarest_first`."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sets: dict[int, Grams] = {}
        self._with_gram: defaultdict[int, list[int]] = defaultdict(list)

    def _prefix(self, hashes: Grams) -> list[int]:
        # 1e-9: 0.55 * 100 is 55.00000000000001 in binary; its ceiling, 56, would leave the prefix one gram short.
        return hashes[: hashes.size - math.ceil(self.threshold * hashes.size - 1e-9) + 1].tolist()

    def add(self, place: int, hashes: Grams) -> None:
        """Adds a set under its own number."""
        self._sets[place] = hashes
        for gram in self._prefix(hashes):
            self._with_gram[gram].append(place)

    def best(self, hashes: Grams) -> tuple[int, float] | None:
        """Returns number and similarity of the most similar set (the first in a tie); None below the threshold."""
        places = {place for gram in self._prefix(hashes) for place in self._with_gram.get(gram, ())}
        scores = [(jaccard(hashes, self._sets[place]), -place) for place in places]
        score, place = max(scores, default=(0.0, 0))
        return (-place, score) if scores and score >= self.threshold - 1e-9 else None


@dataclass(frozen=True)
class Match:
    """The match that makes a question a duplicate."""

    kind: str
    """"exact" or "near"."""
    place: int
    """Number of the matched question; the other files' questions come first, then the file's own."""
    score: float
    """Jaccard similarity; 1.0 for an exact match."""


def duplicates(
    questions: Sequence[str], against: Sequence[str], threshold: float | None, internal: bool
) -> dict[int, Match]:
    """Finds the questions that are in `against`, or earlier among the questions that stay.

    Args:
        threshold: similarity of near-duplicates, above 0 and at most 1; None: only exact matches.
        internal: whether duplicates within `questions` count.

    Returns:
        each duplicate's match by its place in `questions`. The other questions match neither each other nor `against`.
    """
    every = [*against, *questions]
    sets = rarest_first([grams(text) for text in tqdm(every, unit=" n-grams", disable=None)]) if threshold else []
    exact: dict[str, int] = {}
    near = NearIndex(threshold or 1.0)
    matches: dict[int, Match] = {}
    for place, text in enumerate(tqdm(every, unit=" compared", disable=None)):
        key, inside = normalise(text), place - len(against)
        if inside >= 0 and (match := _match(key, exact, near, sets[place] if sets else None)):
            matches[inside] = match
        elif inside < 0 or internal:
            exact.setdefault(key, place)
            if sets:
                near.add(place, sets[place])
    return matches


def _match(key: str, exact: dict[str, int], near: NearIndex, hashes: Grams | None) -> Match | None:
    if key in exact:
        return Match("exact", exact[key], 1.0)
    best = None if hashes is None else near.best(hashes)
    return best and Match("near", *best)
