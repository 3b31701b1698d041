"""The contexts of self-distilling teachers, made from questions and models alone (Unmasking, appendix E.9).

OUT/self, OUT/large, OUT/summaries      sampled and judged, round by round (`opd_verl.alignment.contexts.rounds`)
OUT/contexts.json, contexts.md          how many questions have enough texts for each context
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from opd_verl.alignment.contexts.availability import ContextCounts, count, to_markdown
from opd_verl.alignment.contexts.prompts import check_prompts, lacks
from opd_verl.alignment.contexts.settings import ContextSettings
from opd_verl.alignment.contexts.sources import SampledTexts, find_texts, open_sources
from opd_verl.config.errors import ConfigError
from opd_verl.data.files import replace_column
from opd_verl.data.prompts import rows_of
from opd_verl.data.rows import info
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Sampler
from opd_verl.utils.files import write_json, write_text


@dataclass(frozen=True)
class PreparedContexts:
    """The questions with the texts that the contexts show."""

    rows: pa.Table
    """The given rows with the texts in extra_info: `CONTEXT_HOOKS[name](row)` works for every usable row."""
    usable: list[int]
    """Rows with enough texts for every context; the analysis uses only these rows."""
    counts: ContextCounts


def prepare_contexts(
    student: Model, rows: pa.Table, contexts: ContextSettings, sampler: Sampler, out: Path
) -> PreparedContexts:
    """Samples the texts that the contexts show, and finds the questions with enough texts. No contexts: does nothing.

    Args:
        rows: verl's format; texts in extra_info's filled fields are replaced, and counted.
        sampler: the run's sampler; demonstrations take temperature and max_tokens from `contexts`.

    Raises:
        ConfigError: a setting, model or prompt cannot work, or no question has enough texts for all contexts.
    """
    sources = open_sources(student, rows, contexts, sampler)
    sampled = find_texts(sources, rows, contexts, sampler, out)
    before = [info(row) for row in rows_of(rows)]
    filled = _filled(rows, before, sampled)
    every = filled.to_pylist()
    lacking = {name: [place for place, row in enumerate(every) if lacks(row, name)] for name in contexts.names}
    counts = count(sampled, lacking, before)
    if contexts.names:
        write_json(out / "contexts.json", {"settings": asdict(contexts), "counts": asdict(counts)})
        write_text(out / "contexts.md", to_markdown(counts))
        _check_usable(counts, out / "contexts.md")
        check_prompts(student, filled, counts.usable, contexts.names, sampler.settings)
    return PreparedContexts(filled, counts.usable, counts)


def _filled(rows: pa.Table, before: list[dict[str, object]], sampled: SampledTexts) -> pa.Table:
    if not sampled.fields:
        return rows
    extra = [own | {name: texts[place] for name, texts in sampled.fields.items()} for place, own in enumerate(before)]
    return replace_column(rows, "extra_info", extra)


def _check_usable(counts: ContextCounts, table: Path) -> None:
    if counts.usable:
        return
    enough = {name: counts.questions - len(rows) for name, rows in counts.lacking.items()}
    numbers = ", ".join(f"{name} {number}" for name, number in enough.items())
    problem = f"no question of {counts.questions} has enough texts for all contexts ({numbers}; see {table})"
    raise ConfigError("contexts.names", [*enough], problem, "raise contexts.trials, or ask for fewer contexts")
