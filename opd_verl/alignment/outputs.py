"""The files of an alignment: node table, numbers, tables, pictures, and recipes for a training."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path as File

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opd_verl.alignment.analysis.analyse import Analysis, analyse, to_json
from opd_verl.alignment.analysis.markdown import to_markdown
from opd_verl.alignment.analysis.measures import COSINE
from opd_verl.alignment.analysis.suggest import write_recipe
from opd_verl.alignment.analysis.table import cell
from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.pictures.branches import question_tree
from opd_verl.alignment.pictures.plots import draw_pictures
from opd_verl.alignment.pictures.tree_plot import draw_tree
from opd_verl.alignment.run import AlignmentResult
from opd_verl.utils.files import finite, whole, write_json, write_table, write_text
from opd_verl.utils.markdown import markdown_table

NODES = "nodes.parquet"
BATCH = 10_000


def write_results(result: AlignmentResult, config: AlignmentConfig) -> Analysis:
    """Writes all files in `config.out`; returns the analysis of the first objective."""
    out, nodes = File(config.out), result.nodes
    write_table(out / NODES, nodes)
    write_lines(nodes, out / "nodes.jsonl")
    every = [analyse(nodes, name, config.resamples, config.seed) for name in config.nodes.names]
    first = every[0]
    write_json(out / "alignment.json", finite(as_json(result, every, config)))
    write_text(out / "alignment.md", "\n".join([to_markdown(first), objectives(every), cost(result)]))
    draw_pictures(nodes, first, out)
    if first.teachers and first.together.points:
        name = first.teachers[0].name
        decode = result.prepared.student.decode
        draw_tree(question_tree(nodes, telling(nodes, name), name, lambda token: decode([token])), out / "tree.png")
    for teacher in first.teachers:
        external = result.prepared.teachers.get(teacher.name)
        base, own = (
            ("opd", f"opd.teacher.path={external.path}") if external else ("opsd", f"opd.context.name={teacher.name}")
        )
        write_recipe(first, teacher.name, out, base, own)
    return first


def write_lines(nodes: pa.Table, path: File) -> None:
    """The node table as JSON lines; an undefined value is null."""
    with whole(path) as partial, partial.open("w") as file:
        for batch in nodes.to_batches(BATCH):
            file.writelines(json.dumps(finite(row)) + "\n" for row in batch.to_pylist())


def as_json(result: AlignmentResult, every: Sequence[Analysis], config: AlignmentConfig) -> dict[str, object]:
    """Settings, cost, and the analysis of every objective."""
    trees = [question.tree for question in result.questions]
    size = {"nodes": sum(map(len, trees)), "tree_bytes": sum(tree.nbytes for tree in trees)}
    return {
        "settings": asdict(config),
        "cost": asdict(result.spent) | size,
        "objectives": {analysis.objective: to_json(analysis) for analysis in every},
    }


def objectives(every: Sequence[Analysis]) -> str:
    """Mean cosine of every objective; empty for a single objective."""
    if len(every) < 2:
        return ""
    names = sorted(teacher.name for teacher in every[0].teachers)
    rows = []
    for analysis in every:
        cells = {teacher.name: cell(teacher.means[COSINE]) for teacher in analysis.teachers}
        rows.append([analysis.objective, *(cells.get(name, "") for name in names)])
    return f"## Objectives\n\nMean cosine with the ideal gradient.\n\n{markdown_table(['objective', *names], rows)}\n"


def cost(result: AlignmentResult) -> str:
    """A line with rollouts, time and memory."""
    trees = [question.tree for question in result.questions]
    nodes, megabytes = sum(map(len, trees)), sum(tree.nbytes for tree in trees) / 1e6
    spent = result.spent
    rollouts = f"{result.initial:,} initial rollouts, {spent.rollouts:,} targeted ones"
    return (
        f"Cost: {rollouts} ({spent.seconds / 60:.1f} min with judging); {nodes:,} nodes in {len(trees)} trees, "
        f"{megabytes:.1f} MB.\n"
    )


def telling(nodes: pa.Table, teacher: str) -> int:
    """Row of the question to draw: its decision points have the largest sum of success ranges."""
    rows = nodes.filter((pc.field("teacher") == teacher) & pc.field("decision"))
    questions, which = np.unique(rows["question"].to_numpy(), return_inverse=True)
    return int(questions[np.bincount(which, weights=rows["success_range"].to_numpy()).argmax()])
