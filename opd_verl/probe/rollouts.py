"""The probe's responses: the students' and teachers' own, and those that a teacher finishes for the student.

OUT/rollouts/NAME.parquet                  n judged responses per prompt (`opd_verl.sampling.rollouts`)
OUT/continuation/STUDENT-TEACHER.parquet   the teacher behind each share of the student's measured rollouts
"""

from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

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
    """One rollout of a student that is measured."""

    prompt: int
    """Row of the prompts."""
    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    score: float
    finished: bool

    @property
    def correct(self) -> bool:
        """Whether the judge took its answer."""
        return self.score > CORRECT


def sample_all(plan: PreparedProbe, config: ProbeConfig, generate: Generate = generate_in_child) -> None:
    """Every model's own responses; what is there already is kept."""
    sampler = Sampler(config.sampling, config.engine, config.reward, config.workers, generate)
    for job in plan.jobs.values():
        sampler.run([job])


def measured_rollouts(job: SamplingJob, per_prompt: int, count: int) -> list[Rollout]:
    """The first `count` of the first `per_prompt` responses of every prompt, sample by sample."""
    columns = ["response_ids", "responses", "scores", "finished"]
    rows = pq.read_table(job.out, columns=columns).to_pylist()
    prompts = job.requests["prompt_ids"].to_pylist()
    found = [
        Rollout(prompt, prompts[prompt], *(rows[prompt][name][sample] for name in columns))
        for sample in range(per_prompt)
        for prompt in range(len(rows))
    ]
    return found[:count]


def continue_rollouts(
    rollouts: list[Rollout],
    student: Model,
    teacher: Model,
    plan: PreparedProbe,
    config: ProbeConfig,
    out: Path,
    generate: Generate = generate_in_child,
) -> dict[float, NDArray[np.bool_]]:
    """Share of the rollout: whether the teacher, going on from there, ends correctly, for each rollout.

    The prefix has `floor(share * T)` of the rollout's T tokens. The judge reads prefix and continuation together.
    """
    starts = [(share, one, floor(share * len(one.response_ids))) for share in config.continuation for one in rollouts]
    if not starts:
        return {}
    prompts = [one.prompt_ids + one.response_ids[:length] for _, one, length in starts]
    texts = [student.tokenizer.decode(one.response_ids[:length], skip_special_tokens=True) for _, one, length in starts]
    source = plan.rows.take([one.prompt for _, one, _ in starts]).append_column(RESPONSE_PREFIX, pa.array(texts))
    names = identities([[{"share": share, "prompt": ids}] for (share, _, _), ids in zip(starts, prompts, strict=True)])
    job = SamplingJob(
        teacher, source, pa.table({"identity": names, "prompt_ids": prompts}, schema=REQUESTS_SCHEMA), out
    )
    room = config.max_tokens if teacher.context is None else teacher.context - job.longest_prompt
    settings = replace(config.sampling, n=1, max_tokens=min(config.max_tokens, room))
    Sampler(settings, config.engine, config.reward, config.workers, generate).run([job])
    correct = np.array([row[0] > CORRECT for row in pq.read_table(out, columns=["scores"])["scores"].to_pylist()])
    return dict(zip(config.continuation, correct.reshape(len(config.continuation), len(rollouts)), strict=True))


def requests(rollouts: list[Rollout], **columns: Any) -> pa.Table:
    """What a model is asked to read."""
    found = {"prompt_ids": [one.prompt_ids for one in rollouts], "response_ids": [one.response_ids for one in rollouts]}
    return pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in (found | columns).items()})
