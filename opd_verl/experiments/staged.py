"""Findings F2, F6, F8 and F10 of recipes/README.md, which take several trainings or data made of rollouts.

    python -m opd_verl.experiments.staged F2 F6 F8 F10 --seeds 0 1 2 --out runs/staged

The models are the quickstart's; some findings change them. A finished run is read from its file.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer

from opd_verl.experiments.findings import COMMON, MeasuredRow, measured_table, recovered
from opd_verl.experiments.measure import Measurement, measure
from opd_verl.pipeline.config import (
    ComparisonConfig,
    DataConfig,
    ModelsConfig,
    PipelineConfig,
    RolloutsConfig,
    StageConfig,
)
from opd_verl.pipeline.run import run_pipeline
from opd_verl.quickstart.evaluate import RESPONSE_LIMIT
from opd_verl.quickstart.models import STUDENT, TEACHER, load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import Pupil, eval_problems, prepare, pupils
from opd_verl.quickstart.sft import STUDENT_SFT, TEACHER_SFT

STEPS, LONG_STEPS = 24, 60
LENGTHS = ("data.max_prompt_length=64", f"data.max_response_length={RESPONSE_LIMIT}")
RATE = ("actor_rollout_ref.actor.optim.lr=3e-4", "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine")
TWICE = "actor_rollout_ref.rollout.n=2"
"""Two rollouts per prompt: 128 per step, as in the quickstart."""
WORDY = (1.0,) * 8
"""Openers of a student that begins every line with one of eight letters, which its teacher never writes."""
MISADDED = (5, 9, 13)
"""Digit sums that no model of F8 knows: every teacher fails at the same half of the problems."""
FORGETFUL = 0.85
"""Probability that a solution of F8's student forgets a carry."""
PROMPTS, SUBSET = 1536, 256
"""F8: prompts that both teachers try four times, and the size of each subset."""
COLD_START = ("data.train_batch_size=16", "data.max_length=128", "optim.lr=1e-3", "trainer.total_epochs=1")
COLD_PROMPTS = 4096


def plain(paths: Paths, seed: int) -> list[Pupil]:
    """Returns the quickstart's pair."""
    return pupils(paths, seed)


def mismatched(paths: Paths, seed: int) -> list[Pupil]:
    """Returns a pair whose student writes in another pattern: it opens every line with a letter."""
    teacher, student = pupils(paths, seed)
    return [teacher, replace(student, settings=replace(student.settings, openers=WORDY))]


def reversed_pair(paths: Paths, seed: int) -> list[Pupil]:
    """Returns a pair in which the student solves the task and the teacher forgets carries."""
    careless, able = replace(STUDENT_SFT, seed=seed), replace(TEACHER_SFT, seed=seed + 1)
    return [Pupil(paths.teacher, STUDENT, careless, None), Pupil(paths.student, TEACHER, able, 0.95)]


def half_able(paths: Paths, seed: int) -> list[Pupil]:
    """Returns a student and two teachers that fail at problems with certain digits; the second is in `teacher2`."""
    first, student = pupils(paths, seed)
    able = replace(TEACHER_SFT, max_steps=400, misadded=MISADDED, seed=seed)
    second = Pupil(paths.root / "teacher2", TEACHER, replace(able, seed=seed + 100), None)
    careless = replace(student.settings, forget=FORGETFUL, misadded=MISADDED)
    return [replace(first, settings=able, target=None), replace(student, settings=careless), second]


def train_stage(student: str, steps: int, train: Path | None = None) -> StageConfig:
    """Returns a stage of OPD on the student's top 16, from the first teacher."""
    file = None if train is None else str(train)
    return StageConfig(recipe="opd_topk", student=student, teacher="teacher", steps=steps, train=file)


def f2(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F2: OPD alone."""
    return {"opd": train_stage("student", LONG_STEPS)}


def f6(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F6: OPD alone, and OPD after a cold start."""
    cold = StageConfig(recipe="cold_start", student="student", teacher="teacher", overrides=list(COLD_START))
    return {
        "opd": train_stage("student", STEPS),
        "cold_start": cold,
        "cold_start_then_opd": train_stage("cold_start", STEPS),
    }


def f7_gain(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F7-gain: OPD from a better teacher."""
    return {"opd": train_stage("student", STEPS)}


def f7_regress(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F7-regress: OPD from a worse teacher, on all tokens and on the top 20% of entropies."""
    masked = train_stage("student", STEPS)
    masked.overrides = ["opd.tokens.masks=[top_student_entropy]"]
    return {"opd": train_stage("student", STEPS), "opd_masked": masked}


def f8(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F8: OPD on prompts that both teachers solve, and on prompts that neither solves."""
    folder = subsets(paths)
    return {name: train_stage("student", STEPS, folder / f"{name}.parquet") for name in ("both_correct", "both_wrong")}


def f10(paths: Paths) -> dict[str, StageConfig]:
    """Returns the stages of F10: OPD from a teacher that is worse than its student."""
    return {"reverse": train_stage("student", LONG_STEPS)}


@dataclass(frozen=True)
class Finding:
    """A pair of models and its trainings."""

    pair: Callable[[Paths, int], list[Pupil]]
    stages: Callable[[Paths], dict[str, StageConfig]]


FINDINGS = {
    "F2": Finding(plain, f2),
    "F6": Finding(mismatched, f6),
    "F7-gain": Finding(plain, f7_gain),
    "F7-regress": Finding(reversed_pair, f7_regress),
    "F8": Finding(half_able, f8),
    "F10": Finding(reversed_pair, f10),
}


def subsets(paths: Paths) -> Path:
    """Makes the subsets of Capacity 5.1 from four rollouts of each teacher per prompt. Returns their folder."""
    data, out = [sys.executable, "-m", "opd_verl.data"], paths.root / "subsets"
    if (out / "both_wrong.parquet").exists():
        return out
    files = []
    for teacher in ("teacher", "teacher2"):
        files.append(str(paths.root / f"{teacher}.rollouts.parquet"))
        sampling = ["--n", "4", "--max-tokens", str(RESPONSE_LIMIT), "--limit", str(PROMPTS)]
        command = [*data, "rollouts", str(paths.data / "train.parquet"), *sampling]
        subprocess.run([*command, "--model", str(paths.root / teacher), "--out", files[-1]], check=True)
    size = ["--size", str(SUBSET)]
    subprocess.run([*data, "subsets", "--rollouts", *files, "--out-dir", str(out), *size], check=True)
    return out


def pipeline_of(finding: Finding, paths: Paths, seed: int) -> PipelineConfig:
    """Returns the config of the finding's trainings, for a machine without accelerators."""
    stages = finding.stages(paths)
    for stage in stages.values():
        stage.student = str(paths.student) if stage.student == "student" else stage.student
        stage.teacher = str(paths.teacher)
    return PipelineConfig(
        models=ModelsConfig(str(paths.student), str(paths.teacher)),
        data=DataConfig(str(paths.data / "train.parquet"), str(paths.data / "heldout.parquet")),
        stages=stages,
        out=str(paths.root / "pipeline"),
        cluster="local_cpu",
        seed=seed,
        save_freq=LONG_STEPS,
        overrides=[*COMMON[:3], *LENGTHS, *RATE, TWICE],
        rollouts=RolloutsConfig(limit=COLD_PROMPTS, max_tokens=RESPONSE_LIMIT),
        eval=ComparisonConfig(enabled=False),
    )


def run(name: str, out: Path, seed: int) -> dict[str, Measurement]:
    """Prepares, trains and measures. Returns the measurements of `before`, every stage and `teacher`."""
    finding, paths = FINDINGS[name], Paths((out / f"{name}-seed{seed}").absolute())
    table = paths.root / "result.json"
    if table.exists():
        return {model: Measurement(**value) for model, value in json.loads(table.read_text()).items()}
    prepare(paths, seed, finding.pair(paths, seed))
    config = pipeline_of(finding, paths, seed)
    run_pipeline(config)
    folders = {"before": paths.student, "teacher": paths.teacher}
    folders |= {stage: Path(config.out) / "models" / stage for stage in config.stages}
    tokenizer, teacher = AutoTokenizer.from_pretrained(paths.teacher), load_model(paths.teacher)
    measured = {
        model: measure(load_model(folder), teacher, tokenizer, eval_problems()) for model, folder in folders.items()
    }
    table.write_text(json.dumps({model: asdict(value) for model, value in measured.items()}, indent=2))
    return measured


def table(name: str, results: Sequence[dict[str, Measurement]]) -> str:
    """Returns one finding as Markdown: a row per model, mean ± standard deviation over the seeds."""
    rows: list[MeasuredRow] = []
    for model in results[0]:
        trained = [result | {"after": result[model]} for result in results if model not in ("before", "teacher")]
        rows.append((model, [result[model] for result in results], [recovered(result) for result in trained]))
    return measured_table(name, rows)


def main() -> None:
    """Runs the findings, seed by seed, and prints a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("findings", nargs="+", choices=sorted(FINDINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/staged"))
    options = parser.parse_args()
    for name in options.findings:
        results = [run(name, options.out, seed) for seed in options.seeds]
        print(table(name, results), flush=True)


if __name__ == "__main__":
    main()
