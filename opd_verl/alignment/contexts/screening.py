"""The student answers the questions with each context before them (Unmasking, E.9): does the context help?

OUT/screening/NAME.parquet             judged responses; `baseline` is there only if its rates are not given
OUT/screening.json, screening.md       accuracies, and gains over the baseline
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from opd_verl.alignment.contexts.prepare import PreparedContexts
from opd_verl.alignment.contexts.prompts import messages_with
from opd_verl.alignment.contexts.screening_table import BASELINE, Screened, screen, to_markdown
from opd_verl.alignment.contexts.settings import ContextSettings
from opd_verl.data.files import replace_column, take
from opd_verl.eval.estimators import Array
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Sampler, SamplingJob, accuracies, prepare_job
from opd_verl.utils.files import finite, write_json, write_text


@dataclass(frozen=True)
class Screening:
    """The table, and the questions in it and left out of it."""

    rows: list[Screened]
    """The baseline, then every context."""
    screened: list[int]
    """Rows of the prompts."""
    excluded: list[int]
    """Usable rows that the student never answers without context: extremely hard."""


def screen_contexts(
    student: Model,
    prepared: PreparedContexts,
    contexts: ContextSettings,
    sampler: Sampler,
    out: Path,
    baseline: Sequence[float] | None = None,
    resamples: int = 2000,
) -> Screening:
    """Screens every context on the usable rows, `contexts.screen` responses each, and writes the table.

    Args:
        sampler: the run's sampler; answers have its temperature and length.
        baseline: the pass rate of every row of `prepared.rows` without context, for example in the run's rollouts;
            None: sampled here.
        resamples: bootstrap replicates over questions.
    """
    # max_prompt_tokens limits the student's own prompts; a prompt with a context is longer by design.
    sampler = replace(sampler, settings=replace(sampler.settings, n=contexts.screen, max_prompt_tokens=None))
    if baseline is None:
        rates = _rates(student, prepared, prepared.usable, [BASELINE], sampler, out)[BASELINE]
    else:
        rates = np.array(baseline, np.float64)[prepared.usable]
    answered = rates > 0.0
    asked = [row for row, ever in zip(prepared.usable, answered, strict=True) if ever]
    excluded = [row for row, ever in zip(prepared.usable, answered, strict=True) if not ever]
    by_context = _rates(student, prepared, asked, contexts.names, sampler, out)
    rows = screen(rates[answered], by_context, resamples, sampler.settings.seed)
    screening = Screening(rows, asked, excluded)
    write_json(out / "screening.json", finite({"responses": contexts.screen, **asdict(screening)}))
    write_text(out / "screening.md", to_markdown(rows, len(excluded), contexts.screen))
    return screening


def _rates(
    student: Model, prepared: PreparedContexts, rows: Sequence[int], names: Sequence[str], sampler: Sampler, out: Path
) -> dict[str, Array]:
    """Pass rates of these rows, by context."""
    if not rows:
        return {name: np.zeros(0) for name in names}
    jobs = {name: _job(student, prepared, rows, name, sampler, out) for name in names}
    sampler.run(list(jobs.values()))
    return {name: accuracies(job) for name, job in jobs.items()}


def _job(
    student: Model, prepared: PreparedContexts, rows: Sequence[int], name: str, sampler: Sampler, out: Path
) -> SamplingJob:
    table = take(prepared.rows, rows)
    if name != BASELINE:
        table = replace_column(table, "prompt", [messages_with(row, name) for row in table.to_pylist()])
    return prepare_job(student, table, sampler.settings, out / "screening" / f"{name}.parquet", name)
