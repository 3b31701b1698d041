"""What an alignment leaves: the node table, the numbers, tables, pictures, and recipes with what it suggests."""

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


def write_results(aligned: AlignmentResult, config: AlignmentConfig) -> Analysis:
    """Everything in `config.out`; gives the analysis of the first objective."""
    out, nodes = File(config.out), aligned.nodes
    write_table(out / NODES, nodes)
    write_lines(nodes, out / "nodes.jsonl")
    every = [analyse(nodes, name, config.resamples, config.seed) for name in config.nodes.names]
    first = every[0]
    write_json(out / "alignment.json", finite(as_json(aligned, every, config)))
    write_text(out / "alignment.md", "\n".join([to_markdown(first), objectives(every), cost(aligned)]))
    draw_pictures(nodes, first, out)
    if first.teachers and first.together.points:
        name = first.teachers[0].name
        decode = aligned.plan.student.tokenizer.decode
        draw_tree(question_tree(nodes, telling(nodes, name), name, lambda token: decode([token])), out / "tree.png")
    for one in first.teachers:
        external = aligned.plan.teachers.get(one.name)
        base, own = (
            ("opd", f"opd.teacher.path={external.path}") if external else ("opsd", f"opd.context.name={one.name}")
        )
        write_recipe(first, one.name, out, base, own)
    return first


def write_lines(nodes: pa.Table, path: File) -> None:
    """The node table as JSON lines, null for what is undefined."""
    with whole(path) as partial, partial.open("w") as file:
        for batch in nodes.to_batches(BATCH):
            file.writelines(json.dumps(finite(row)) + "\n" for row in batch.to_pylist())


def as_json(aligned: AlignmentResult, every: Sequence[Analysis], config: AlignmentConfig) -> dict[str, object]:
    """The results of all objectives, with what they were made with and what they cost."""
    trees = [one.tree for one in aligned.questions]
    return {
        "settings": asdict(config),
        "cost": asdict(aligned.spent) | {"nodes": sum(map(len, trees)), "tree_bytes": sum(one.nbytes for one in trees)},
        "objectives": {one.objective: to_json(one) for one in every},
    }


def objectives(every: Sequence[Analysis]) -> str:
    """Mean cosine of every objective, where there are several."""
    if len(every) < 2:
        return ""
    names = sorted(one.name for one in every[0].teachers)
    rows = []
    for one in every:
        found = {teacher.name: cell(teacher.means[COSINE]) for teacher in one.teachers}
        rows.append([one.objective, *(found.get(name, "") for name in names)])
    return f"## Objectives\n\nMean cosine with the ideal gradient.\n\n{markdown_table(['objective', *names], rows)}\n"


def cost(aligned: AlignmentResult) -> str:
    """Rollouts, time and memory."""
    trees = [one.tree for one in aligned.questions]
    nodes, megabytes = sum(map(len, trees)), sum(one.nbytes for one in trees) / 1e6
    spent = aligned.spent
    rollouts = f"{aligned.initial:,} initial rollouts, {spent.rollouts:,} targeted ones"
    return (
        f"Cost: {rollouts} ({spent.seconds / 60:.1f} min with judging); {nodes:,} nodes in {len(trees)} trees, "
        f"{megabytes:.1f} MB.\n"
    )


def telling(nodes: pa.Table, teacher: str) -> int:
    """The question whose decision points have the largest ranges of success in sum: the one to draw."""
    rows = nodes.filter((pc.field("teacher") == teacher) & pc.field("decision"))
    questions, which = np.unique(rows["question"].to_numpy(), return_inverse=True)
    return int(questions[np.bincount(which, weights=rows["success_range"].to_numpy()).argmax()])
