"""Statistics over the n answers to one problem: the majority's correctness, and how diverse the answers are. Pure.

An answer is the text that the judge found in a response, without white space. The empty text is no answer and casts no
vote. A number that is written in two ways counts as two answers.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def normal(answer: str) -> str:
    """The answer without white space."""
    return "".join(answer.split())


def votes(answers: Sequence[str]) -> Counter[str]:
    """Number of responses that gave each answer; responses without an answer are left out."""
    return Counter(filter(None, map(normal, answers)))


def majority(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """Correctness of the most frequent answer, 0 to 1: maj@n. A tie counts as the mean over the leading answers.

    A judge that reads more than the answer may give two responses with the same answer different scores; the answer
    then counts as the mean of its scores. Without any answer the result is 0.
    """
    count = votes(answers)
    if not count:
        return 0.0
    top = max(count.values())
    leaders = [answer for answer, times in count.items() if times == top]
    pairs = [(normal(answer), float(right)) for answer, right in zip(answers, correct, strict=True)]
    return float(np.mean([np.mean([right for answer, right in pairs if answer == leader]) for leader in leaders]))


def distinct_share(answers: Sequence[str]) -> float:
    """Number of different answers over n, 0 to 1."""
    return len(votes(answers)) / len(answers)


def answer_entropy(answers: Sequence[str]) -> float:
    """Entropy of the empirical distribution of the answers, nats: 0 for one answer, ln n for n different answers."""
    share = np.array(list(votes(answers).values()), np.float64)
    share /= share.sum() or 1.0  # no answer: the sum is 0, and so is the entropy
    return float(-(share * np.log(share)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0
