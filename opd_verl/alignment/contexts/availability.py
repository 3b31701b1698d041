"""How many questions have what a context shows (Unmasking, Table 7), and which all contexts can use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd_verl.alignment.contexts.demonstrations import texts
from opd_verl.alignment.contexts.sources import SampledTexts
from opd_verl.data.judged import Judged
from opd_verl.utils.markdown import markdown_table


@dataclass(frozen=True)
class SourceCounts:
    """What one model was asked for, over all rounds."""

    questions: int
    """With at least one correct demonstration."""
    responses: int
    cut: int
    """Responses that did not finish: no demonstrations."""


@dataclass(frozen=True)
class ContextCounts:
    """Numbers of questions; None where there is no such model."""

    questions: int
    own: SourceCounts | None
    large: SourceCounts | None
    both: int | None
    """With at least one correct demonstration of each."""
    lacking: dict[str, list[int]]
    """Context: the rows that have too little for it."""
    usable: list[int]
    """Rows that have enough for every context: the analysis is restricted to them."""
    summaries: int
    """Demonstrations that a summary was asked of."""
    summaries_missing: int
    """No attempt finished with a text."""
    summaries_judged_otherwise: int
    """Summaries that the judge does not judge as what they sum up."""
    replaced: int
    """Questions that had texts of their own where the sampled ones are now."""


def count(found: SampledTexts, lacking: dict[str, list[int]], before: Sequence[Mapping[str, Any]]) -> ContextCounts:
    """The counts.

    Args:
        lacking: the rows that have too little for each context.
        before: every row's extra_info as it was given.
    """
    left_out = {row for rows in lacking.values() for row in rows}
    summaries = found.summaries
    return ContextCounts(
        questions=len(before),
        own=_asked(found.own),
        large=_asked(found.large),
        both=_both(found),
        lacking=lacking,
        usable=[row for row in range(len(before)) if row not in left_out],
        summaries=summaries.asked,
        summaries_missing=summaries.missing,
        summaries_judged_otherwise=summaries.judged_otherwise,
        replaced=sum(any(extra.get(name) for name in found.fields) for extra in before),
    )


def _asked(judged: Sequence[Judged] | None) -> SourceCounts | None:
    if judged is None:
        return None
    correct = sum(bool(texts(one, 1.0)) for one in judged)
    return SourceCounts(
        correct, sum(len(one.finished) for one in judged), sum(one.finished.count(False) for one in judged)
    )


def _both(found: SampledTexts) -> int | None:
    if found.own is None or found.large is None:
        return None
    return sum(bool(texts(one, 1.0) and texts(other, 1.0)) for one, other in zip(found.own, found.large, strict=True))


def to_markdown(counts: ContextCounts) -> str:
    """contexts.md."""
    return f"# Contexts of the teachers\n\n{_sources(counts)}\n\n{_contexts(counts)}\n\n{_notes(counts)}\n"


def _sources(counts: ContextCounts) -> str:
    named = {"self": counts.own, "larger model": counts.large}
    rows = [
        [name, str(one.questions), str(one.responses), str(one.cut)] for name, one in named.items() if one is not None
    ]
    rows += [] if counts.both is None else [["both", str(counts.both), "", ""]]
    return markdown_table(
        ["demonstrations by", f"questions of {counts.questions} with a correct one", "responses", "cut"], rows
    )


def _contexts(counts: ContextCounts) -> str:
    rows = [[name, str(counts.questions - len(rows))] for name, rows in counts.lacking.items()]
    rows.append(["all of them", str(len(counts.usable))])
    return markdown_table(["context", f"questions of {counts.questions} with enough for it"], rows)


def _notes(counts: ContextCounts) -> str:
    lines = [f"The analysis is restricted to the {len(counts.usable)} questions that have enough for all contexts."]
    if counts.summaries:
        lines.append(
            f"Of {counts.summaries} summaries {counts.summaries_missing} are missing, and the judge takes "
            f"{counts.summaries_judged_otherwise} for something else than what they sum up."
        )
    if counts.replaced:
        lines.append(f"{counts.replaced} questions had texts in extra_info that the sampled ones took the place of.")
    return "\n".join(lines)
