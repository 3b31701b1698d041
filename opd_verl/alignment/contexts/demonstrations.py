"""Correct and wrong solutions of the questions, sampled from a model until there are enough (Unmasking, E.9)."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.alignment.contexts.rounds import ask_in_rounds, round_sizes
from opd_verl.alignment.contexts.settings import LARGE, SUMMARIES, ContextSettings
from opd_verl.data.contexts import finished_texts
from opd_verl.data.judged import Judged
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Sampler

SCORES = {"correct": 1.0, "wrong": 0.0}
Texts = list[list[str]]
"""The texts of every row."""


@dataclass(frozen=True)
class NeededTexts:
    """Texts that a question must have from one model."""

    correct: int
    wrong: int

    @property
    def nothing(self) -> bool:
        """Whether no text is needed from the model."""
        return not self.correct and not self.wrong

    def lacking(self, judged: Judged) -> bool:
        """Whether these responses hold too few texts."""
        return len(texts(judged, 1.0)) < self.correct or len(texts(judged, 0.0)) < self.wrong


def needed(contexts: ContextSettings) -> tuple[NeededTexts, NeededTexts]:
    """Texts needed from the student and from the larger model; a summary needs its demonstration."""
    wanted = contexts.wanted
    own = (max(wanted.get(kind, 0), wanted.get(kind + SUMMARIES, 0)) for kind in ("correct", "wrong"))
    return NeededTexts(*own), NeededTexts(wanted.get(LARGE, 0), 0)


def texts(judged: Judged, score: float) -> list[str]:
    """The finished, non-empty responses with this score, in their order, without duplicates."""
    return list(dict.fromkeys(finished_texts(judged, score)))


def demonstrate(
    model: Model, rows: pa.Table, need: NeededTexts, contexts: ContextSettings, sampler: Sampler, folder: Path
) -> list[Judged]:
    """The model's responses to every question, at most `contexts.trials` each, until no text is lacking."""
    sizes = round_sizes(contexts.trials, contexts.per_round)
    return ask_in_rounds(model, rows, sampler, sizes, folder, need.lacking)
