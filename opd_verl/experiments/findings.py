"""The papers' findings at a small scale, through the real `main_ppo` (recipes/README.md, F3, F4 and F5).

    python -m opd_verl.experiments.findings F3 F4 F5 --seeds 0 1 2 --out runs/findings
    python -m opd_verl.experiments.findings F5 --seeds 0 --steps 4 --out runs/try

The models are the quickstart's. F3 needs a teacher that is uncertain somewhere: its models open every line with one of
eight letters, which are equally likely for the teacher and not for the student. A finished run is read from its file.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from transformers import AutoTokenizer

from opd_verl.experiments.measure import Measurement, measure
from opd_verl.quickstart.distil import distil
from opd_verl.quickstart.models import load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import Pupil, eval_problems, prepare, pupils
from opd_verl.utils.markdown import markdown_table

STEPS = 24
COMMON = (
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "trainer.test_freq=-1",
    "trainer.save_freq=1000000",
)
"""64 rollouts per step in 4 updates. verl saves a checkpoint after the last step with every save_freq."""
TEACHER_OPENERS = (1.0,) * 8
STUDENT_OPENERS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0)

MeasuredRow = tuple[str, Sequence[Measurement], Sequence[float]]
"""A table row: a model, its measurements by seed, and its gap recovery rates by seed (empty: none)."""


@dataclass(frozen=True)
class Variant:
    """One way to distil: a recipe with overrides."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    forks: bool = False
    """Whether the teacher is uncertain at the beginning of every line."""


def topk(name: str, k: int, *more: str) -> Variant:
    """Returns a variant of recipe=opd_topk: the exact reverse KL on k ids, changed by the overrides `more`."""
    return Variant(name, "opd_topk", (f"opd.objective.k={k}", *more))


SAMPLED, TOP16 = Variant("sampled", "opd"), topk("top-16", 16)
# A single renormalised token has probability 1 for both models: F5's top-1 is the papers' policy gradient instead.
FINDINGS: dict[str, tuple[Variant, ...]] = {
    "F3": (Variant("opd on forks", "opd", forks=True), Variant("eopd on forks", "eopd", forks=True)),
    "F4": (
        TOP16,
        topk("overlap only", 16, "opd.objective.support=intersection"),
        topk("non-overlap only", 16, "opd.objective.support=symmetric_difference"),
    ),
    "F5": (SAMPLED, topk("top-1", 1, "opd.objective.paper_compat=true"), topk("top-4", 4), TOP16),
}


def pupils_of(variant: Variant, paths: Paths, seed: int) -> list[Pupil]:
    """Returns the teacher and the student of this variant."""
    teacher, student = pupils(paths, seed)
    if not variant.forks:
        return [teacher, student]
    return [
        replace(teacher, settings=replace(teacher.settings, openers=TEACHER_OPENERS)),
        replace(student, settings=replace(student.settings, openers=STUDENT_OPENERS)),
    ]


def run(variant: Variant, out: Path, seed: int, steps: int) -> dict[str, Measurement]:
    """Prepares, distils and measures, or reads a finished run. Returns `before`, `after` and `teacher`."""
    root = out / f"{'forks' if variant.forks else 'plain'}-seed{seed}"
    paths = Paths(root.absolute(), variant.name.replace(" ", "_").replace(",", ""))
    if paths.table.exists():
        return {name: Measurement(**value) for name, value in json.loads(paths.table.read_text()).items()}
    prepare(paths, seed, pupils_of(variant, paths, seed))
    distil(paths, variant.recipe, steps, seed, [*COMMON, *variant.overrides])
    tokenizer, teacher = AutoTokenizer.from_pretrained(paths.teacher), load_model(paths.teacher)
    models = {"before": paths.student, "after": paths.distilled(steps), "teacher": paths.teacher}
    measured = {name: measure(load_model(path), teacher, tokenizer, eval_problems()) for name, path in models.items()}
    paths.table.write_text(json.dumps({name: asdict(value) for name, value in measured.items()}, indent=2))
    return measured


def cell(values: Sequence[float]) -> str:
    """Formats mean ± standard deviation over the seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def table(finding: str, results: dict[str, list[dict[str, Measurement]]]) -> str:
    """Returns one finding as Markdown, three rows per variant: before, after, and its teacher."""
    rows: list[MeasuredRow] = []
    for variant, runs in results.items():
        rows.append((f"{variant}: before", [run["before"] for run in runs], []))
        rows.append((variant, [run["after"] for run in runs], [recovered(run) for run in runs]))
        rows.append((f"{variant}: teacher", [run["teacher"] for run in runs], []))
    return measured_table(finding, rows)


def measured_table(finding: str, rows: Sequence[MeasuredRow]) -> str:
    """Returns all measurements as Markdown, mean ± standard deviation over the seeds."""
    names = list(Measurement.__dataclass_fields__)
    lines = [
        [
            label,
            *(cell([getattr(seed, name) for seed in seeds]) for name in names),
            cell(rates) if rates else "",
        ]
        for label, seeds, rates in rows
    ]
    return markdown_table([finding, *names, "recovery"], lines)


def recovered(models: dict[str, Measurement]) -> float:
    """Returns the gap recovery rate of the accuracy."""
    before, after, teacher = (models[stage].accuracy for stage in ("before", "after", "teacher"))
    return (after - before) / (teacher - before)


def main() -> None:
    """Runs the findings, seed by seed, and prints a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("findings", nargs="+", choices=sorted(FINDINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/findings"))
    options = parser.parse_args()
    for finding in options.findings:
        results: dict[str, list[dict[str, Measurement]]] = {}
        for seed in options.seeds:
            for variant in FINDINGS[finding]:
                results.setdefault(variant.name, []).append(run(variant, options.out, seed, options.steps))
        print(table(finding, results), flush=True)


if __name__ == "__main__":
    main()
