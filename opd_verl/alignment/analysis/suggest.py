"""From diagnosis to training: a recipe file with the weights and masks that one teacher's alignment suggests, and why.

`write_recipe` writes OUT/conf/recipe/aligned_TEACHER.yaml, a delta over `recipe=opd`, for
`python -m verl.trainer.main_ppo --config-dir OUT/conf recipe=aligned_TEACHER opd.teacher.path=... ...`.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

from opd_verl.alignment.analysis.analyse import Analysis, PathGroup
from opd_verl.alignment.analysis.comparing import FEWEST_QUESTIONS
from opd_verl.alignment.analysis.measures import COSINE, QUANTILES, SIGNAL, filtered, spearman
from opd_verl.alignment.analysis.table import cell
from opd_verl.metrics.estimate import Estimate
from opd_verl.utils.files import write_text

WIDTH = 116
"""Most characters in a line of a comment."""
KINDS = ("correct", "incorrect")
TEACHER = "opd.teacher.path=TEACHER"
MODEL_AND_DATA = "actor_rollout_ref.model.path=STUDENT data.train_files=..."


@dataclass(frozen=True)
class Advice:
    """Lines of `opd.tokens` with the numbers behind them, or no lines and the reason."""

    why: str
    lines: dict[str, str] = field(default_factory=dict)


def above_zero(estimate: Estimate) -> bool:
    """Whether the whole interval lies above 0; an unknown interval does not."""
    return estimate.low > 0


def direction(group: PathGroup) -> str:
    """A sentence about whether the teacher points to success at all."""
    cosine = f"Mean cosine {cell(group.means[COSINE], 4)} over {group.paths} paths of {group.questions} questions"
    if above_zero(group.means[COSINE]):
        return f"{cosine}: the teacher points to success."
    return f"{cosine}: not above 0. No weight and no filter makes this a good teacher; try another teacher first."


def weighting(group: PathGroup) -> Advice:
    """Weights of correct and incorrect rollouts: 1 for the kind with the higher mean cosine, the ratio for the other.

    Weights are suggested only if the 95% interval of the difference excludes 0. The ratio `lower / higher` is
    clipped to [0, 1]. Unmasking 4.1: "incorrect paths exhibit significantly higher gradient alignment than correct
    paths".
    """
    sides = group.sides[COSINE]
    gap, values = sides.difference, (sides.correct.value, sides.incorrect.value)
    said = (
        f"mean cosine {cell(sides.correct, 4)} on correct paths, {cell(sides.incorrect, 4)} on incorrect ones, "
        f"difference {cell(gap, 4)}"
    )
    if group.questions < FEWEST_QUESTIONS:
        return Advice(f"No weight by correctness: {too_few(group)}; {said}.")
    if not (gap.low > 0 or gap.high < 0):
        return Advice(f"No weight by correctness: {said}, whose interval does not exclude 0.")
    if max(values) <= 0:
        return Advice(f"No weight by correctness: {said}; the teacher points to success on neither kind of path.")
    lower, higher = sorted(zip(values, KINDS, strict=True))
    weight = min(max(lower[0] / higher[0], 0.0), 1.0)
    numbers = {higher[1]: "1.0", lower[1]: f"{weight:.3f}"}
    why = (
        f"Tokens of {lower[1]} rollouts count {weight:.3f}: {said}; {lower[0]:.4f} / {higher[0]:.4f}, at least 0. "
        "A rollout is correct if its task score is above 0."
    )
    return Advice(why, {"weights": "[correctness]", **{kind: numbers[kind] for kind in KINDS}})


def filtering(group: PathGroup) -> Advice:
    """The mask `high_divergence` with the best quantile of the KL, if the cosine rises with the KL.

    The mask is suggested only if the interval of the mean rank correlation lies above 0 and a filter raises the mean
    signal. Unmasking 4.3: divergence "could serve as a cheap necessary-condition filter".
    """
    rank, full = group.means[spearman("kl")], group.means[SIGNAL].value
    signals = {quantile: group.means[filtered(quantile)].value for quantile in QUANTILES}
    known = {quantile: value for quantile, value in signals.items() if not math.isnan(value)}
    said = f"rank correlation of cosine and KL {cell(rank, 4)}"
    table = ", ".join(f"{value:+.4f} above its {quantile:g} quantile" for quantile, value in known.items())
    if group.questions < FEWEST_QUESTIONS:
        return Advice(f"No divergence filter: {too_few(group)}; {said}.")
    if not above_zero(rank):
        return Advice(f"No divergence filter: {said}, whose interval does not lie above 0.")
    best = max(known, key=lambda quantile: known[quantile], default=None)
    if best is None or known[best] <= full:
        return Advice(
            f"No divergence filter: {said}, but mean signal {full:+.4f} at all decision points, {table or '-'}."
        )
    why = (
        f"Only tokens where teacher and student differ most: {said}; mean signal {full:+.4f} at all decision points, "
        f"{table}. In training |r_t| stands in for the KL."
    )
    return Advice(why, {"masks": "[high_divergence]", "divergence_quantile": f"{best:g}"})


def too_few(group: PathGroup) -> str:
    """The reason why nothing is concluded from few questions."""
    return f"{group.questions} questions are too few to tell (at least {FEWEST_QUESTIONS})"


def recipe_name(teacher: str) -> str:
    """Name of the teacher's recipe, for `recipe=`."""
    return "aligned_" + re.sub(r"[^\w.-]", "_", teacher)


def recipe_yaml(analysis: Analysis, teacher: str, conf: Path, base: str = "opd", own: str = TEACHER) -> str:
    """The recipe file.

    Args:
        analysis: the analysis of the objective that is trained.
        teacher: one of the analysed teachers.
        conf: the folder for `--config-dir`.
        base: the recipe that this one changes.
        own: the override that names the teacher, such as `opd.context.name=1c` with the base `opsd`.

    Raises ValueError if the analysis has no such teacher.
    """
    groups = {group.name: group for group in analysis.teachers}
    if teacher not in groups:
        raise ValueError(f"no teacher {teacher!r} (there are: {', '.join(groups)})")
    group = groups[teacher]
    command = f"python -m verl.trainer.main_ppo --config-dir {conf} recipe={recipe_name(teacher)} {own}"
    advices = (weighting(group), filtering(group))
    parts = [
        f"# @package _global_\n# {command} {MODEL_AND_DATA}",
        comment(f"Suggested by the gradient alignment of teacher {teacher} (objective {analysis.objective}; in "
                "brackets 95% intervals over questions)."),
        comment(direction(group)),
        f"\ndefaults: [{base}, _self_]\n",
        *(comment(advice.why) + "\n" for advice in advices if not advice.lines),
    ]  # fmt: skip
    if given := [advice for advice in advices if advice.lines]:
        parts.append("opd:\n  tokens:\n" + "\n\n".join(map(section, given)))
    return "\n".join(parts).rstrip() + "\n"


def section(advice: Advice) -> str:
    """The lines of an advice below its reason."""
    lines = [f"{name}: {value}" for name, value in advice.lines.items()]
    return "\n".join([comment(advice.why, indent=4), *(f"    {line}" for line in lines)])


def comment(text: str, indent: int = 0) -> str:
    """A YAML comment in lines of a readable length."""
    start = " " * indent + "# "
    return "\n".join(wrap(text, WIDTH, initial_indent=start, subsequent_indent=start))


def write_recipe(analysis: Analysis, teacher: str, out: Path, base: str = "opd", own: str = TEACHER) -> Path:
    """Writes OUT/conf/recipe/aligned_TEACHER.yaml; arguments as in `recipe_yaml`. Returns the file's path."""
    conf = out / "conf"
    path = conf / "recipe" / f"{recipe_name(teacher)}.yaml"
    write_text(path, recipe_yaml(analysis, teacher, conf, base, own))
    return path
