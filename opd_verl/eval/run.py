"""One evaluation: sample, judge, read entropies, estimate, report. A killed evaluation resumes with the missing parts.

OUT/rollouts/MODEL/BENCHMARK.parquet      a rollouts file (`opd_verl.sampling.rollouts`), with its parts beside it
OUT/entropy/MODEL/BENCHMARK/              token entropies of some of its responses
OUT/table.json, table.md, pass_at_k.png, entropy.png
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.eval.config import EvalConfig
from opd_verl.eval.entropies import EntropySummary, chosen, summarise
from opd_verl.eval.plots import draw_entropies, draw_pass_at_k
from opd_verl.eval.prepare import PreparedEvaluation, prepare_evaluation
from opd_verl.eval.rows import AVERAGE, EvalRow, make_row, problem_values, with_gap_recovery
from opd_verl.eval.table import to_json, to_markdown
from opd_verl.sampling.generate import generate_in_child
from opd_verl.sampling.read import READ_SCHEMA, Reading, read_model
from opd_verl.sampling.rollouts import Generate, Sampler, SamplingJob
from opd_verl.utils.files import write_json, write_text


def evaluate(config: EvalConfig, generate: Generate = generate_in_child) -> list[EvalRow]:
    """Measures every model on every benchmark and writes the results to `config.out`.

    Returns a row per model and benchmark and, with several benchmarks, their averages. Raises ConfigError before
    any model is loaded if a setting, model or file cannot work, and ChildError if a model's process fails.
    """
    prepared = prepare_evaluation(config)
    sampler = Sampler(config.sampling, config.engine, config.reward, config.workers, generate)
    for model in prepared.models:
        jobs = [job for (owner, _), job in prepared.jobs.items() if owner == model]
        sampler.run(jobs)
    entropies = token_entropies(prepared, config) if config.entropy else {}
    rows = make_rows(prepared, config, entropies)
    write_report(rows, prepared, config)
    return rows


def token_entropies(prepared: PreparedEvaluation, config: EvalConfig) -> dict[tuple[str, str], EntropySummary]:
    """(model, benchmark): token entropies of the model at `config.entropy_responses` of its own responses."""
    folder, summaries = Path(config.out) / "entropy", {}
    for name, model in prepared.models.items():
        readings = {
            benchmark: Reading(_requests(job, config), folder / name / benchmark)
            for (owner, benchmark), job in prepared.jobs.items()
            if owner == name
        }
        trust, log = config.engine.trust_remote_code, folder / name / "entropy.log"
        read_model(model.path, model.fingerprint, list(readings.values()), trust, log)
        for benchmark, reading in readings.items():
            summaries[name, benchmark] = summarise(reading.column("entropy"))
    return summaries


def _requests(job: SamplingJob, config: EvalConfig) -> pa.Table:
    """The prompts and responses to read. The (problem, sample) pairs are the same for every model."""
    prompts = job.requests["prompt_ids"].to_pylist()
    responses = pq.read_table(job.out, columns=["response_ids"])["response_ids"].to_pylist()
    picked = chosen(len(prompts), config.n, config.entropy_responses, config.seed)
    columns = {
        "prompt_ids": [prompts[problem] for problem, _ in picked],
        "response_ids": [responses[problem][sample] for problem, sample in picked],
    }
    return pa.table(columns, schema=READ_SCHEMA)


def make_rows(
    prepared: PreparedEvaluation, config: EvalConfig, entropies: dict[tuple[str, str], EntropySummary]
) -> list[EvalRow]:
    """The table's rows: benchmark by benchmark, then the average; the models keep their order."""
    columns = ["scores", "answers", "response_tokens", "finished"]
    values = {
        name: problem_values(pq.read_table(job.out, columns=columns), config.pass_ks)
        for name, job in prepared.jobs.items()
    }
    rows = []
    for benchmark in [*prepared.benchmarks, *([AVERAGE] if len(prepared.benchmarks) > 1 else [])]:
        for model in prepared.models:
            strata = list(prepared.benchmarks) if benchmark == AVERAGE else [benchmark]
            measured = [values[model, stratum] for stratum in strata]
            row = make_row(model, benchmark, config.n, config.pass_ks, measured, config.resamples, config.seed)
            rows.append(replace(row, entropy=entropies.get((model, benchmark))))
    return with_gap_recovery(rows, prepared.before, prepared.teacher)


def write_report(rows: list[EvalRow], prepared: PreparedEvaluation, config: EvalConfig) -> None:
    """Writes the tables and pictures."""
    out = Path(config.out)
    write_text(out / "table.md", to_markdown(rows, config))
    draw_pass_at_k(rows, out / "pass_at_k.png")
    if config.entropy:
        draw_entropies(rows, out / "entropy.png")
    write_json(out / "table.json", to_json(rows, prepared, config))
