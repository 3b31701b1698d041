"""Counts the questions with enough texts for each context (Unmasking, table 7), and lists those usable for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opd_verl.alignment.contexts.demonstrations import texts
from opd_verl.alignment.contexts.sources import SampledTexts
from opd_verl.data.judged import Judged
from opd_verl.utils.markdown import markdown_table


@dataclass(frozen=True)
class SourceCounts:
    """Demonstrations of one model, over all rounds."""

    questions: int
    """Questions with at least one correct demonstration."""
    responses: int
    cut: int
    """Unfinished responses; they are no demonstrations."""


@dataclass(frozen=True)
class ContextCounts:
    """Numbers of questions, demonstrations and summaries; None for a model that was not asked."""

    questions: int
    own: SourceCounts | None
    large: SourceCounts | None
    both: int | None
    """Questions with at least one correct demonstration by each of the two models."""
    lacking: dict[str, list[int]]
    """Rows with too few texts, by context."""
    usable: list[int]
    """Rows with enough texts for every context; the analysis uses only these rows."""
    summaries: int
    """Demonstrations that were to be summarised."""
    summaries_missing: int
    """Demonstrations without a summary: no attempt finished with a text."""
    summaries_judged_otherwise: int
    """Summaries whose verdict differs from the demonstration's verdict."""
    replaced: int
    """Questions whose texts in extra_info were replaced by sampled texts."""


def count(
    sampled: SampledTexts, lacking: dict[str, list[int]], before: Sequence[Mapping[str, object]]
) -> ContextCounts:
    """Counts questions, demonstrations and summaries.

    Args:
        lacking: rows with too few texts, by context.
        before: every row's extra_info before any text was filled in.
    """
    left_out = {row for rows in lacking.values() for row in rows}
    summaries = sampled.summaries
    return ContextCounts(
        questions=len(before),
        own=_asked(sampled.own),
        large=_asked(sampled.large),
        both=_both(sampled),
        lacking=lacking,
        usable=[row for row in range(len(before)) if row not in left_out],
        summaries=summaries.asked,
        summaries_missing=summaries.missing,
        summaries_judged_otherwise=summaries.judged_otherwise,
        replaced=sum(any(extra.get(name) for name in sampled.fields) for extra in before),
    )


def _asked(judged: Sequence[Judged] | None) -> SourceCounts | None:
    if judged is None:
        return None
    correct = sum(bool(texts(responses, 1.0)) for responses in judged)
    finished = [flag for responses in judged for flag in responses.finished]
    return SourceCounts(correct, len(finished), finished.count(False))


def _both(sampled: SampledTexts) -> int | None:
    if sampled.own is None or sampled.large is None:
        return None
    pairs = zip(sampled.own, sampled.large, strict=True)
    return sum(bool(texts(own, 1.0) and texts(large, 1.0)) for own, large in pairs)


def to_markdown(counts: ContextCounts) -> str:
    """contexts.md."""
    return f"# Contexts of the teachers\n\n{_sources(counts)}\n\n{_contexts(counts)}\n\n{_notes(counts)}\n"


def _sources(counts: ContextCounts) -> str:
    named = {"self": counts.own, "larger model": counts.large}
    rows = [
        [name, str(counted.questions), str(counted.responses), str(counted.cut)]
        for name, counted in named.items()
        if counted is not None
    ]
    rows += [] if counts.both is None else [["both", str(counts.both), "", ""]]
    return markdown_table(
        ["demonstrations by", f"questions of {counts.questions} with a correct one", "responses", "cut"], rows
    )


def _contexts(counts: ContextCounts) -> str:
    rows = [[name, str(counts.questions - len(rows))] for name, rows in counts.lacking.items()]
    rows.append(["all contexts", str(len(counts.usable))])
    return markdown_table(["context", f"questions of {counts.questions} with enough texts"], rows)


def _notes(counts: ContextCounts) -> str:
    lines = [f"The analysis is restricted to the {len(counts.usable)} questions that have enough for all contexts."]
    if counts.summaries:
        lines.append(
            f"Of {counts.summaries} summaries {counts.summaries_missing} are missing, and "
            f"{counts.summaries_judged_otherwise} are judged differently from their demonstrations."
        )
    if counts.replaced:
        lines.append(f"Sampled texts replaced the texts in the extra_info of {counts.replaced} questions.")
    return "\n".join(lines)
