"""A language with exactly known success probabilities: the next token depends only on the last token.

Ids 0 .. V-1 are words. Id V ends a response well, id V + 1 badly; a response that is cut at `length` tokens fails. With
n tokens left, a response after word v ends well with probability `s_n(v) = P(V | v) + sum_w P(w | v) s_{n-1}(w)`, and
`s_0 = 0`.

Shapes: V words, V + 2 ids. Row v of a matrix is the distribution after word v; row V is the first token's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opd_verl.alignment.tree.enrich import Launched, Order
from opd_verl.alignment.tree.generation_tree import GenerationTree, Ints, PackedRollouts
from opd_verl.alignment.tree.question import Path, QuestionTree, representative

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Language:
    """A student, and teachers that end well more or less often."""

    student: Floats
    """Next-token distributions, [V + 1, V + 2]."""
    teachers: dict[str, Floats]
    """Next-token distributions of each teacher, [V + 1, V + 2]."""
    length: int = 40
    """Longest response, tokens."""

    @property
    def words(self) -> int:
        """V: number of words."""
        return len(self.student) - 1

    def success(self) -> Floats:
        """Returns the probability of a good end by tokens left and last token, [length + 1, V + 2]."""
        ends_well = np.zeros((self.length + 1, self.words + 2))
        ends_well[:, self.words] = 1.0
        for left in range(1, self.length + 1):
            ends_well[left, : self.words] = self.student[: self.words] @ ends_well[left - 1]
        return ends_well

    def sample(self, prefix: Sequence[int], count: int, generator: np.random.Generator) -> list[tuple[Ints, bool]]:
        """Samples `count` responses that begin with `prefix`. Returns the whole responses and whether they end well."""
        last = np.full(count, prefix[-1] if len(prefix) else self.words)
        steps = [np.tile(np.array(prefix, np.int64), (count, 1))]
        ended = np.full(count, bool(len(prefix)) and last[0] >= self.words) if len(prefix) else np.zeros(count, bool)
        sizes, cumulative = np.full(count, len(prefix)), self.student.cumsum(-1)
        for _ in range(self.length - len(prefix)):
            # An ended response keeps drawing, from row V, and the draw is cut off below: all draws stay one array.
            rows = cumulative[np.where(ended, self.words, last)]
            drawn = (generator.random((count, 1)) > rows).sum(-1).clip(max=self.words + 1)
            last, sizes = np.where(ended, last, drawn), sizes + ~ended
            steps.append(drawn[:, None])
            ended = ended | (drawn >= self.words)
        tokens = np.concatenate(steps, -1)
        return [
            (row[:size].astype(np.int32), bool(end == self.words))
            for row, size, end in zip(tokens, sizes, last, strict=True)
        ]

    def path(self, tokens: Ints, correct: bool) -> Path:
        """Returns a response with the exact log-probs of student and teachers for every id."""
        before = np.concatenate([[self.words], tokens[:-1]])
        ids = np.tile(np.arange(self.words + 2, dtype=np.int32), (len(tokens), 1))
        log_q = {name: np.log(matrix[before]) for name, matrix in self.teachers.items()}
        return Path(tokens, correct, ids, np.log(self.student[before]), log_q)

    def children(self, path: Path) -> Floats:
        """Returns the exact success probability after each id at every position of a path, [L, V + 2]."""
        return np.stack([self.success()[self.length - depth - 1] for depth in range(len(path.tokens))])


def make_language(
    words: int = 6,
    sharpness: float = 1.5,
    ending: float = 1.5,
    commitment: float = 0.0,
    length: int = 40,
    seed: int = 0,
) -> Language:
    """Makes a random student and three teachers: `good` leans toward success, `bad` away from it, `noise` to neither.

    Args:
        sharpness: standard deviation of the logits.
        ending: subtracted from the logits of both ends; with it responses get longer.
        commitment: subtracted from the logits between the first half of the words, which ends well, and the second,
            which ends badly. A response then rarely changes between the halves, and a change decides how it ends.
    """
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(words + 1, words + 2))
    logits[:, words:] -= ending
    side = np.array([*(word >= words // 2 for word in range(words)), False, True])
    logits[:words] -= commitment * (side[:words, None] != side[None])
    student = _softmax(logits)
    ahead = Language(student, {}, length).success()[-1]
    noise = generator.normal(size=logits.shape)
    leaning = {"good": 2.0 * ahead + 0.3 * noise, "bad": -2.0 * ahead + 0.3 * noise, "noise": noise}
    return Language(student, {name: _softmax(logits + change) for name, change in leaning.items()}, length)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def ask(language: Language, number: int, rollouts: int, paths: int, seed: int) -> QuestionTree:
    """Makes a question: its tree of initial rollouts and its representative paths."""
    responses = language.sample([], rollouts, np.random.default_rng((seed, number)))
    correct = [ends_well for _, ends_well in responses]
    tree = GenerationTree()
    tree.add(PackedRollouts.of([tokens for tokens, _ in responses], [0] * rollouts, correct))
    chosen = representative(correct, paths, paths, (seed, number))
    return QuestionTree(number, tree, [language.path(*responses[row]) for row in chosen], float(np.mean(correct)))


@dataclass(frozen=True, eq=False)
class LanguageSampler:
    """Samples targeted rollouts from the language itself."""

    language: Language
    questions: dict[int, QuestionTree]
    generator: np.random.Generator

    def orders(self, wanted: Sequence[Order]) -> Launched:
        """Samples all ordered rollouts."""
        rows: dict[int, list[tuple[Ints, int, bool]]] = {}
        for order in wanted:
            target = order.target
            path = self.questions[target.question].paths[target.path]
            prefix = [*path.tokens[: target.depth].tolist(), target.token]
            sampled = self.language.sample(prefix, order.count, self.generator)
            rows.setdefault(target.question, []).extend((tokens, len(prefix), correct) for tokens, correct in sampled)
        grouped = {number: PackedRollouts.of(*zip(*rollouts, strict=True)) for number, rollouts in rows.items()}
        return Launched(grouped, sum(order.count for order in wanted), 0.0)
