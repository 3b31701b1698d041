"""The probe's responses: the models' own responses, and the students' rollouts that a teacher finishes.

OUT/rollouts/NAME.parquet                  n judged responses per prompt (`opd_verl.sampling.rollouts`)
OUT/continuation/STUDENT-TEACHER.parquet   the teacher's ends after each share of the student's measured rollouts
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.prepare import PreparedProbe
from opd_verl.sampling.generate import REQUESTS_SCHEMA, generate_in_child
from opd_verl.sampling.judging import CORRECT, RESPONSE_PREFIX
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Generate, Sampler, SamplingJob
from opd_verl.sampling.rows import identities


@dataclass(frozen=True)
class Rollout:
    """A measured rollout of a student."""

    prompt: int
    """Row of the prompt in the prompts file."""
    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    score: float
    finished: bool
    """False: cut at max_tokens."""

    @property
    def correct(self) -> bool:
        """Whether the judge accepted the rollout's answer."""
        return self.score > CORRECT


def sample_all(prepared: PreparedProbe, config: ProbeConfig, generate: Generate = generate_in_child) -> None:
    """Samples every model's own responses. Finished files are kept."""
    sampler = Sampler(config.sampling, config.engine, config.reward, config.workers, generate)
    for job in prepared.jobs.values():
        sampler.run([job])


def measured_rollouts(job: SamplingJob, per_prompt: int, count: int) -> list[Rollout]:
    """The first `count` rollouts, in the order: the first response of every prompt, the second of every prompt, ..."""
    columns = ["response_ids", "responses", "scores", "finished"]
    rows = pq.read_table(job.out, columns=columns).to_pylist()
    prompts = job.requests["prompt_ids"].to_pylist()
    rollouts = [
        Rollout(prompt, prompts[prompt], *(rows[prompt][name][sample] for name in columns))
        for sample in range(per_prompt)
        for prompt in range(len(rows))
    ]
    return rollouts[:count]


def continue_rollouts(
    rollouts: list[Rollout],
    student: Model,
    teacher: Model,
    prepared: PreparedProbe,
    config: ProbeConfig,
    out: Path,
    generate: Generate = generate_in_child,
) -> dict[float, NDArray[np.bool_]]:
    """Whether the teacher ends each rollout correctly if it continues after each share of `config.continuation`.

    The prefix has `floor(share * T)` of the rollout's T tokens. The judge reads prefix and continuation together.
    """
    starts = [
        (share, rollout, floor(share * len(rollout.response_ids)))
        for share in config.continuation
        for rollout in rollouts
    ]
    if not starts:
        return {}
    prompts = [rollout.prompt_ids + rollout.response_ids[:length] for _, rollout, length in starts]
    texts = [student.decode(rollout.response_ids[:length], skip_special_tokens=True) for _, rollout, length in starts]
    source = prepared.rows.take([rollout.prompt for _, rollout, _ in starts])
    source = source.append_column(RESPONSE_PREFIX, pa.array(texts))
    names = identities([[{"share": share, "prompt": ids}] for (share, _, _), ids in zip(starts, prompts, strict=True)])
    requests_table = pa.table({"identity": names, "prompt_ids": prompts}, schema=REQUESTS_SCHEMA)
    job = SamplingJob(teacher, source, requests_table, out)
    # The prefix is part of the prompt here, so the teacher's context may leave room for fewer than max_tokens.
    room = config.max_tokens if teacher.context is None else teacher.context - job.longest_prompt
    settings = replace(config.sampling, n=1, max_tokens=min(config.max_tokens, room))
    Sampler(settings, config.engine, config.reward, config.workers, generate).run([job])
    correct = np.array([row[0] > CORRECT for row in pq.read_table(out, columns=["scores"])["scores"].to_pylist()])
    return dict(zip(config.continuation, correct.reshape(len(config.continuation), len(rollouts)), strict=True))


def requests(rollouts: list[Rollout], **columns: Sequence[NDArray[np.int32]]) -> pa.Table:
    """The rollouts as requests of `opd_verl.sampling.read`, with further columns such as `at_ids`."""
    table: dict[str, Sequence[object]] = {
        "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
        "response_ids": [rollout.response_ids for rollout in rollouts],
        **columns,
    }
    return pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in table.items()})
