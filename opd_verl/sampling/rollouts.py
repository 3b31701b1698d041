"""From the rows of a file to a rollouts file: n judged responses per prompt.

    OUT.parts/settings.json, requests.parquet, shard-*.parquet          sampled
    OUT.parts/judged/settings.json, shard-*.parquet                     judged
    OUT                                                                 the source's columns, and `ROLLOUT_COLUMNS`

A killed command resumes with the missing shards and writes the same OUT. Once OUT exists, the parts may be deleted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from opd_verl.sampling import judging, shards
from opd_verl.sampling.generate import REQUESTS_SCHEMA, GenerationTask, generate_in_child
from opd_verl.sampling.judging import CORRECT
from opd_verl.sampling.parts import REQUESTS, ShardFolder
from opd_verl.sampling.prompts import Model, check_lengths, encode, open_model
from opd_verl.sampling.rows import identities, read_rows
from opd_verl.sampling.settings import EngineSettings, RewardSettings, SamplingSettings
from opd_verl.schema import ROLLOUT_COLUMNS
from opd_verl.utils.files import json_digest, whole, write_table

MADE_WITH = b"opd_verl.sampling"
"""Key of the rollouts file's metadata: the settings behind its rows, as JSON."""

Generate = Callable[[GenerationTask], None]
"""Fills the missing shards of a task; tests give a function that needs no vLLM."""

MadeWith = dict[str, dict[str, object]]
"""`sampled`: everything that the tokens depend on. `judged`: everything that the scores depend on."""


@dataclass(frozen=True)
class SamplingJob:
    """Rows encoded for one model, and the file for their rollouts."""

    model: Model
    source: pa.Table
    """The rows of the file, without columns of an earlier sampling."""
    requests: pa.Table
    """identity (string) and prompt_ids (list of int32), a row per prompt."""
    out: Path

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.requests["prompt_ids"]))

    @property
    def folder(self) -> Path:
        """Folder of the shards from which `out` is assembled."""
        return self.out.with_name(f"{self.out.name}.parts")


def prepare_job(model: Model, rows: pa.Table, settings: SamplingSettings, out: Path, where: str) -> SamplingJob:
    """Encodes the rows for a model. Raises ConfigError if a prompt is too long; `where`: the rows' source."""
    source = rows.select([name for name in rows.column_names if name not in ROLLOUT_COLUMNS])
    messages = source["prompt"].to_pylist()
    ids = [encode(model.tokenizer, prompt, settings) for prompt in messages]
    check_lengths(model, ids, settings, where)
    requests = pa.table({"identity": identities(messages), "prompt_ids": ids}, schema=REQUESTS_SCHEMA)
    return SamplingJob(model, source, requests, out)


@dataclass(frozen=True)
class Sampler:
    """Samples and judges responses with fixed settings."""

    settings: SamplingSettings
    engine: EngineSettings = field(default_factory=EngineSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    workers: int | None = None
    """Processes that judge; None: one per processor."""
    generate: Generate = generate_in_child

    def run(self, jobs: Sequence[SamplingJob]) -> None:
        """Writes the rollouts files of one model's jobs and loads the model once. Finished files are kept."""
        made_with = {job.out: _made_with(job, self.settings, self.engine, self.reward) for job in jobs}
        todo = [job for job in jobs if _recorded(job.out) != made_with[job.out]]
        if not todo:
            return
        parts = {job.out: _open(job, self.settings, made_with[job.out]) for job in todo}
        longest = max(job.longest_prompt for job in jobs) + self.settings.max_tokens
        log = todo[0].out.with_name("vllm.log")
        self.generate(
            GenerationTask(todo[0].model.path, self.settings, self.engine, longest, list(parts.values()), log)
        )
        for job in todo:
            _finish(job, parts[job.out], self.settings, made_with[job.out], self.reward, self.workers)


def sample_rollouts(
    model: str,
    files: Sequence[Path],
    settings: SamplingSettings,
    out: Path,
    limit: int | None = None,
    engine: EngineSettings | None = None,
    reward: RewardSettings | None = None,
    workers: int | None = None,
    generate: Generate = generate_in_child,
) -> Path:
    """Samples `settings.n` responses to each prompt of the files (the first `limit`), judges them, and writes `out`.

    Columns added, n entries per row: `responses` (texts), `response_ids`, `response_tokens` (with the end-of-sequence
    token), `finished` (False: cut at max_tokens), `scores`, `answers` (found by the judge); and `model`.
    Raises ConfigError before sampling starts if a setting, file or model cannot work.
    """
    settings.check()
    judging.load_reward(reward or RewardSettings())
    rows = read_rows("files", files, limit)
    opened = open_model("model", model, engine.trust_remote_code if engine else False)
    job = prepare_job(opened, rows, settings, out, ", ".join(map(str, files)))
    Sampler(settings, engine or EngineSettings(), reward or RewardSettings(), workers, generate).run([job])
    return out


def _made_with(
    job: SamplingJob, settings: SamplingSettings, engine: EngineSettings, reward: RewardSettings
) -> MadeWith:
    # Only the engine's dtype counts: its other keys decide where the model runs, not which tokens it samples.
    sampled = {
        "model": job.model.fingerprint,
        "settings": asdict(settings),
        "dtype": engine.dtype,
        "prompts": json_digest(job.requests.to_pylist()),
    }
    judged = judging.judge_settings(reward) | {"rows": json_digest(job.source.to_pylist())}
    return json.loads(json.dumps({"sampled": sampled, "judged": judged}))


def _recorded(out: Path) -> MadeWith | None:
    """The settings in an existing rollouts file's metadata; None if there is no file or no such metadata."""
    metadata = pq.read_schema(out).metadata if out.exists() else None
    return json.loads((metadata or {}).get(MADE_WITH, b"null"))


def _open(job: SamplingJob, settings: SamplingSettings, made_with: MadeWith) -> ShardFolder:
    parts = ShardFolder(job.folder, len(shards.shard_ranges(len(job.source), settings.prompts_per_shard)))
    parts.open(made_with["sampled"])
    write_table(parts.folder / REQUESTS, job.requests)
    return parts


def _finish(
    job: SamplingJob,
    parts: ShardFolder,
    settings: SamplingSettings,
    made_with: MadeWith,
    reward: RewardSettings,
    workers: int | None,
) -> None:
    judged = ShardFolder(parts.folder / "judged", parts.count)
    judged.open(made_with["judged"])
    size = settings.prompts_per_shard
    judging.judge_shards(parts, judged, job.source, size, reward, workers or judging.default_workers())
    _assemble(job, parts, judged, size, made_with)


def _assemble(job: SamplingJob, parts: ShardFolder, judged: ShardFolder, size: int, made_with: MadeWith) -> None:
    """Writes the rollouts file shard by shard, so that only one shard is in memory."""
    fields = [*job.source.schema, *shards.SHARD_SCHEMA, *judging.JUDGED_SCHEMA, pa.field("model", pa.string())]
    schema = pa.schema(fields, metadata={MADE_WITH: json.dumps(made_with, sort_keys=True)})
    with whole(job.out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for index, rows in enumerate(shards.shard_ranges(len(job.source), size)):
            columns = [
                *job.source.slice(rows.start, len(rows)).columns,
                *parts.read(index).columns,
                *judged.read(index).columns,
                pa.array([job.model.path] * len(rows), pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def accuracies(job: SamplingJob) -> NDArray[np.float64]:
    """Share of correct responses of each prompt."""
    scores = pq.read_table(job.out, columns=["scores"])["scores"].to_pylist()
    return np.array([sum(score > CORRECT for score in row) / len(row) for row in scores], np.float64)
