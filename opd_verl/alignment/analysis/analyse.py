"""From the node table to every number of the report: per teacher, and for all teachers together. Pure.

Each measurement (`measures.MEANINGS`) is averaged over the paths of a teacher. For all teachers together a path
counts once for each teacher, as in the paper. Intervals are bootstraps over questions (alignment/README.md 7).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from opd_verl.alignment.analysis.comparing import Comparison, compare
from opd_verl.alignment.analysis.intervals import QuestionDraws, draw_questions
from opd_verl.alignment.analysis.measures import COMPARED, COSINE, MEANINGS
from opd_verl.alignment.analysis.paths import measure_paths
from opd_verl.alignment.analysis.points import Flags, Floats, TokenTable, numbers, read_tokens
from opd_verl.alignment.tree.difficulty import BINS, SOLVABLE, difficulty
from opd_verl.metrics.estimate import Estimate
from opd_verl.utils.files import finite

ALL = "all teachers"
EDGES = np.linspace(-1.0, 1.0, 21)
"""Edges of the histogram's bins; a cosine that rounding puts outside [-1, 1] counts in the outermost bin."""


@dataclass(frozen=True)
class Cosines:
    """The distribution of the cosine over decision points."""

    mean: float
    std: float
    correct: list[int]
    """Decision points of correct paths in each bin of EDGES."""
    incorrect: list[int]


@dataclass(frozen=True)
class PathGroup:
    """The paths of one teacher, or of all teachers."""

    name: str
    paths: int
    """Paths with a decision point, each counted once for each teacher."""
    questions: int
    """Questions with a path that has a decision point."""
    points: int
    """Decision points with a cosine."""
    means: dict[str, Estimate]
    """Every measurement of MEANINGS."""
    sides: dict[str, Comparison]
    """The measurements of COMPARED on correct and on incorrect paths."""
    bins: dict[str, Estimate]
    """Mean cosine of the questions of each difficulty."""
    cosines: Cosines


@dataclass(frozen=True)
class Analysis:
    """All numbers of one objective."""

    objective: str
    together: PathGroup
    teachers: list[PathGroup]
    """Highest mean cosine first."""
    questions: dict[str, int]
    """Questions of each difficulty; extremely hard ones have no part in any other number."""
    undefined: int
    """Decision points without a cosine: student and teacher agree on their tokens."""
    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class MeasuredPaths:
    """All paths with their measurements."""

    tokens: TokenTable
    values: Mapping[str, Floats]
    """Measurement: its value of every path [U]."""
    draws: QuestionDraws


def analyse(nodes: pa.Table, objective: str, resamples: int = 2000, seed: int = 0) -> Analysis:
    """All numbers of the node table's teachers, for one objective.

    Raises ConfigError if the table has no cosines of this objective.
    """
    tokens = read_tokens(nodes, objective)
    measured = MeasuredPaths(tokens, measure_paths(tokens), draw_questions(tokens.paths.question, resamples, seed))
    teacher = tokens.paths.teacher
    groups = [group(str(name), measured, teacher == name) for name in np.unique(teacher)]
    return Analysis(
        objective=objective,
        together=group(ALL, measured, np.ones(len(teacher), dtype=bool)),
        teachers=sorted(groups, key=rank),
        questions=question_counts(nodes),
        undefined=tokens.undefined,
        resamples=resamples,
        seed=seed,
    )


def rank(group: PathGroup) -> tuple[bool, float]:
    """Sorts the highest mean cosine first, and groups without one last."""
    value = group.means[COSINE].value
    return math.isnan(value), -value


def group(name: str, measured: MeasuredPaths, members: Flags) -> PathGroup:
    """The numbers of the members [U]."""
    paths, drawn, cosine = measured.tokens.paths, measured.draws, measured.values[COSINE]
    levels, known = difficulty(paths.pass_rate), members & ~np.isnan(cosine)
    return PathGroup(
        name=name,
        paths=int(known.sum()),
        questions=len(np.unique(paths.question[known])),
        points=int((measured.tokens.point & members[measured.tokens.unit]).sum()),
        means={key: drawn.mean(measured.values[key], members) for key in MEANINGS},
        sides={key: compare(measured.values[key], members, paths.correct, drawn) for key in COMPARED},
        bins={level: drawn.mean(cosine, members & (levels == level)) for level in SOLVABLE},
        cosines=distribution(measured.tokens, members),
    )


def distribution(tokens: TokenTable, members: Flags) -> Cosines:
    """The cosines at the members' decision points; mean and deviation are NaN without such points."""
    kept = tokens.point & members[tokens.unit]
    cosine, correct = tokens.cosine[kept].clip(-1, 1), tokens.paths.correct[tokens.unit[kept]]
    counts = [np.histogram(cosine[side], EDGES)[0].tolist() for side in (correct, ~correct)]
    mean, std = (float(cosine.mean()), float(cosine.std())) if len(cosine) else (math.nan, math.nan)
    return Cosines(mean, std, *counts)


def question_counts(nodes: pa.Table) -> dict[str, int]:
    """Number of questions of each difficulty."""
    # Every row of a question holds the question's pass rate, so its first row will do.
    _, first = np.unique(numbers(nodes, "question"), return_index=True)
    levels = difficulty(numbers(nodes, "pass_rate")[first])
    return {level: int((levels == level).sum()) for level in BINS}


def to_json(analysis: Analysis) -> dict[str, object]:
    """Plain values for JSON; undefined values become null."""
    return finite(asdict(analysis) | {"edges": EDGES.round(2).tolist(), "meanings": MEANINGS})
