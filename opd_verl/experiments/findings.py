"""The papers' findings at a small scale, through the real `main_ppo` (recipes/README.md, F3, F4 and F5).

    python -m opd_verl.experiments.findings F3 F4 F5 --seeds 0 1 2 --out runs/findings
    python -m opd_verl.experiments.findings F5 --seeds 0 --steps 4 --out runs/try

Models are the quickstart's. F3 needs a teacher that is uncertain somewhere, so its models open every line with one of
eight letters, equally good for the teacher and not for the student. What is there already is not run again.
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
"""64 rollouts a step, 4 updates. verl saves after the last step whatever save_freq says."""
TEACHER_OPENERS = (1.0,) * 8
STUDENT_OPENERS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0)

Row = tuple[str, Sequence[Measurement], Sequence[float]]
"""Of a table: a model, what was measured with each seed, and its gap recovery rates."""


@dataclass(frozen=True)
class Variant:
    """One way to distil."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    forks: bool = False
    """Whether it runs on the models whose teacher is uncertain at the beginning of a line."""


def topk(name: str, k: int, *more: str) -> Variant:
    """The exact reverse KL, or what `more` makes of it, on a support of top-k ids."""
    return Variant(name, "opd_topk", (f"opd.objective.k={k}", *more))


SAMPLED, TOP16 = Variant("sampled", "opd"), topk("top-16", 16)
# One renormalised token has nothing to learn from: the top-1 of F5 is the papers' policy gradient.
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
    """Teacher and student of this variant."""
    teacher, student = pupils(paths, seed)
    if not variant.forks:
        return [teacher, student]
    return [
        replace(teacher, settings=replace(teacher.settings, openers=TEACHER_OPENERS)),
        replace(student, settings=replace(student.settings, openers=STUDENT_OPENERS)),
    ]


def run(variant: Variant, out: Path, seed: int, steps: int) -> dict[str, Measurement]:
    """Prepares, measures, distils and measures again: {before, after, teacher}; read back where it was done before."""
    root = out / f"{'forks' if variant.forks else 'plain'}-seed{seed}"
    paths = Paths(root.absolute(), variant.name.replace(" ", "_").replace(",", ""))
    if paths.table.exists():
        return {name: Measurement(**value) for name, value in json.loads(paths.table.read_text()).items()}
    prepare(paths, seed, pupils_of(variant, paths, seed))
    distil(paths, variant.recipe, steps, seed, [*COMMON, *variant.overrides])
    tokenizer, teacher = AutoTokenizer.from_pretrained(paths.teacher), load_model(paths.teacher)
    models = {"before": paths.student, "after": paths.distilled(steps), "teacher": paths.teacher}
    found = {name: measure(load_model(path), teacher, tokenizer, eval_problems()) for name, path in models.items()}
    paths.table.write_text(json.dumps({name: asdict(value) for name, value in found.items()}, indent=2))
    return found


def cell(values: Sequence[float]) -> str:
    """mean ± standard deviation over the seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def table(finding: str, results: dict[str, list[dict[str, Measurement]]]) -> str:
    """One finding as markdown, three rows per variant: before, after, and its teacher."""
    rows: list[Row] = []
    for variant, runs in results.items():
        rows.append((f"{variant}: before", [one["before"] for one in runs], []))
        rows.append((variant, [one["after"] for one in runs], [recovered(one) for one in runs]))
        rows.append((f"{variant}: teacher", [one["teacher"] for one in runs], []))
    return measured_table(finding, rows)


def measured_table(finding: str, rows: Sequence[Row]) -> str:
    """Markdown: what was measured, mean ± standard deviation over the seeds."""
    names = list(Measurement.__dataclass_fields__)
    lines = [
        [label, *(cell([getattr(one, name) for one in seeds]) for name in names), cell(rates) if rates else ""]
        for label, seeds, rates in rows
    ]
    return markdown_table([finding, *names, "recovery"], lines)


def recovered(one: dict[str, Measurement]) -> float:
    """Gap recovery rate of the accuracy."""
    before, after, teacher = (one[stage].accuracy for stage in ("before", "after", "teacher"))
    return (after - before) / (teacher - before)


def main() -> None:
    """Runs what is asked for, seed by seed, and prints a table for each finding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("findings", nargs="+", choices=sorted(FINDINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/findings"))
    options = parser.parse_args()
    for finding in options.findings:
        found: dict[str, list[dict[str, Measurement]]] = {}
        for seed in options.seeds:
            for variant in FINDINGS[finding]:
                found.setdefault(variant.name, []).append(run(variant, options.out, seed, options.steps))
        print(table(finding, found), flush=True)


if __name__ == "__main__":
    main()
