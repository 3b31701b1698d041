"""The node table as arrays: each token of each path for each teacher, with its cosine at decision points."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd_verl.alignment.analysis.measures import FEATURES
from opd_verl.alignment.gradients.node_table import COSINE
from opd_verl.config.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PathTable:
    """One row per path and teacher [U], by question, path, and teacher's name."""

    question: Ints
    """0 .. Q - 1, in the order of the questions' rows."""
    row: Ints
    """Row of the question in the prompts file."""
    number: Ints
    """Number of the path within its question."""
    teacher: NDArray[np.str_]
    correct: Flags
    pass_rate: Floats


@dataclass(frozen=True, eq=False)
class TokenTable:
    """One row per path, teacher and position [N], in the order of `paths`, then of depth."""

    paths: PathTable
    unit: Ints
    """Row of `paths` that the token belongs to."""
    depth: Ints
    """Position in the response, from 0."""
    cosine: Floats
    """NaN except at decision points."""
    success_range: Floats
    advantage: Floats
    features: dict[str, Floats]
    undefined: int
    """Decision points without a cosine: the teacher asks for no change there."""

    @cached_property
    def point(self) -> Flags:
        """Whether each token is a decision point with a cosine."""
        return ~np.isnan(self.cosine)

    def mean(self, values: Floats, kept: Flags) -> Floats:
        """Mean of values [N] over the kept tokens of each path [U]; NaN where none is kept."""
        count, total = self.total(np.ones(len(values)), kept), self.total(values, kept)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    def total(self, values: Floats, kept: Flags) -> Floats:
        """Sum of values [N] over the kept tokens of each path [U]."""
        counted = np.where(kept, values, 0.0)
        return np.bincount(self.unit, counted, len(self.paths.question)).astype(np.float64)


def objectives(nodes: pa.Table) -> list[str]:
    """The objectives whose cosines are in the node table."""
    return [name.removeprefix(COSINE) for name in nodes.column_names if name.startswith(COSINE)]


def numbers(nodes: pa.Table, name: str) -> NDArray:
    """A column of plain numbers."""
    return nodes[name].combine_chunks().to_numpy(zero_copy_only=False)


def solvable(nodes: pa.Table) -> pa.Table:
    """Leaves out the questions whose initial rollouts all failed: they have no correct path (Unmasking E.9)."""
    return nodes.filter(pa.array(numbers(nodes, "pass_rate") > 0))


def read_tokens(nodes: pa.Table, objective: str) -> TokenTable:
    """The node table's rows of solvable questions, for one objective.

    Raises ConfigError if the table has no cosines of this objective.
    """
    if objective not in objectives(nodes):
        problem = f"the node table has no cosines of this objective (it has: {', '.join(objectives(nodes)) or 'none'})"
        raise ConfigError("objective", objective, problem, "name one of these objectives, or compute it")
    rows = solvable(nodes)
    columns = {name: numbers(rows, name) for name in ("question", "path", "depth", "correct", "pass_rate", "length")}
    names, columns["teacher"] = teachers(rows)
    order, unit, first = units(columns)
    decision, cosine = numbers(rows, "decision")[order], numbers(rows, COSINE + objective)[order].astype(np.float64)
    return TokenTable(
        paths=paths({name: values[order][first] for name, values in columns.items()}, names),
        unit=unit,
        depth=columns["depth"][order],
        cosine=np.where(decision, cosine, np.nan),
        success_range=numbers(rows, "success_range")[order],
        advantage=numbers(rows, "advantage")[order],
        features={name: feature(rows, name)[order] for name in FEATURES},
        undefined=int((decision & np.isnan(cosine)).sum()),
    )


def feature(rows: pa.Table, name: str) -> Floats:
    """A feature of FEATURES; depth is the share of the response before the token."""
    return numbers(rows, "depth") / numbers(rows, "length") if name == "depth" else numbers(rows, name)


def teachers(rows: pa.Table) -> tuple[NDArray[np.str_], Ints]:
    """The teachers' names in their order, and the number of each row's teacher."""
    # N strings are slow to sort: number the few distinct names by name, then look each row's number up.
    encoded = rows["teacher"].combine_chunks().dictionary_encode()
    names, numbered = np.unique(np.array(encoded.dictionary.to_pylist(), dtype=str), return_inverse=True)
    return names, numbered[encoded.indices.to_numpy(zero_copy_only=False)]


def units(columns: dict[str, NDArray]) -> tuple[Ints, Ints, Ints]:
    """Order of the rows by question, path, teacher and depth; each ordered row's path number; each path's first row."""
    keys = [columns[name] for name in ("question", "path", "teacher")]
    # The last key of lexsort sorts first: question, then path, then teacher, then depth.
    order = np.lexsort((columns["depth"], *reversed(keys)))
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    return order, np.cumsum(new) - 1, np.flatnonzero(new)


def paths(columns: dict[str, NDArray], names: NDArray[np.str_]) -> PathTable:
    """The table of paths from columns with one row per path and teacher."""
    _, question = np.unique(columns["question"], return_inverse=True)
    return PathTable(
        question=question,
        row=columns["question"],
        number=columns["path"],
        teacher=names[columns["teacher"]],
        correct=columns["correct"].astype(bool),
        pass_rate=columns["pass_rate"],
    )
