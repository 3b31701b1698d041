"""The models that write the contexts' texts, and all texts that were sampled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from opd_verl.alignment.contexts.demonstrations import SCORES, Texts, demonstrate, needed, texts
from opd_verl.alignment.contexts.settings import LARGE, SUMMARIES, ContextSettings
from opd_verl.alignment.contexts.summaries import Summaries, summarise
from opd_verl.config.errors import ConfigError
from opd_verl.data.judged import Judged
from opd_verl.data.prompts import rows_of
from opd_verl.data.rows import BadRow, bare_question
from opd_verl.sampling.prompts import Model, check_lengths, encode, open_model
from opd_verl.sampling.rollouts import Sampler
from opd_verl.sampling.settings import SamplingSettings


@dataclass(frozen=True)
class Sources:
    """The models."""

    student: Model
    large: Model | None
    summariser: Model


@dataclass(frozen=True)
class SampledTexts:
    """Responses of the models; None for a model that is not needed."""

    own: list[Judged] | None
    """The student's responses to every row."""
    large: list[Judged] | None
    """The larger model's responses to every row."""
    summaries: Summaries
    fields: dict[str, Texts]
    """Texts of every row, at most as many as a context shows, by field of extra_info."""


def open_sources(student: Model, rows: pa.Table, contexts: ContextSettings, sampler: Sampler) -> Sources:
    """Opens the models and checks the questions. Raises ConfigError for an unusable model or question."""
    contexts.check()
    trust = sampler.engine.trust_remote_code
    large = open_model("contexts.large", contexts.large, trust) if contexts.large else None
    summariser = open_model("contexts.summariser", contexts.summariser, trust) if contexts.summariser else student
    _check_questions(rows)
    settings = demonstration_settings(contexts, sampler.settings)
    asked = zip((student, large), needed(contexts), strict=True)
    for model in [model for model, need in asked if model is not None and not need.nothing]:
        ids = [encode(model.tokenizer, messages, settings) for messages in rows["prompt"].to_pylist()]
        check_lengths(model, ids, settings, "the prompts")
    return Sources(student, large, summariser)


def demonstration_settings(contexts: ContextSettings, run: SamplingSettings) -> SamplingSettings:
    """The run's settings with the demonstrations' temperature and length."""
    return replace(run, n=1, temperature=contexts.temperature, max_tokens=contexts.max_tokens or run.max_tokens)


def find_texts(
    sources: Sources, rows: pa.Table, contexts: ContextSettings, sampler: Sampler, out: Path
) -> SampledTexts:
    """Asks the student and the larger model for solutions, then the summariser."""
    sampler = replace(sampler, settings=demonstration_settings(contexts, sampler.settings))
    own_need, large_need = needed(contexts)
    own = large = None
    if not own_need.nothing:
        own = demonstrate(sources.student, rows, own_need, contexts, sampler, out / "self")
    if not large_need.nothing:
        assert sources.large is not None
        large = demonstrate(sources.large, rows, large_need, contexts, sampler, out / "large")
    summed = _summaries(sources.summariser, rows, own, contexts, sampler, out / "summaries")
    return SampledTexts(own, large, summed, _fields(own, large, contexts) | summed.fields)


def _check_questions(rows: pa.Table) -> None:
    for place, row in enumerate(rows_of(rows)):
        try:
            bare_question(row)
        except BadRow as bad:
            raise ConfigError("prompts", f"row {place}", str(bad), "leave the row out") from bad


def _summaries(
    model: Model,
    rows: pa.Table,
    own: Sequence[Judged] | None,
    contexts: ContextSettings,
    sampler: Sampler,
    folder: Path,
) -> Summaries:
    wanted = {kind: contexts.wanted.get(kind + SUMMARIES, 0) for kind in SCORES}
    solutions = {
        kind: [texts(judged, SCORES[kind])[:count] for judged in own or ()] for kind, count in wanted.items() if count
    }
    if not solutions:
        return Summaries({}, 0, 0, 0)
    # The summary prompt asks its own question: the run's suffix ("put your answer in a box") has no place in it.
    settings = replace(sampler.settings, suffix="", max_prompt_tokens=None)
    return summarise(model, rows, solutions, replace(sampler, settings=settings), folder)


def _fields(
    own: Sequence[Judged] | None, large: Sequence[Judged] | None, contexts: ContextSettings
) -> dict[str, Texts]:
    """Texts of the demonstrations, by field of extra_info."""
    given = {"correct": (own, 1.0), "wrong": (own, 0.0), LARGE: (large, 1.0)}
    return {
        name: [texts(judged, score)[: contexts.wanted[name]] for judged in responses or ()]
        for name, (responses, score) in given.items()
        if name in contexts.wanted
    }
