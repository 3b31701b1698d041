"""Node tables of made-up questions: paths that share a beginning, teachers that lean to success more or less."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from opd_verl.alignment.gradients.node_table import NodeSettings, schema

SCHEMA = schema(NodeSettings())
LEANS = {"strong": 3.0, "weak": 0.5}
"""Teacher: how far its log-probabilities lean to the success probability, on incorrect paths."""


@dataclass(frozen=True)
class Shape:
    """The size of a made-up node table."""

    questions: int = 8
    length: int = 40
    shared: int = 6
    """Tokens that all paths of a question begin with."""
    pass_rates: Sequence[float] = (0.9, 0.5, 0.1)
    """Pass rates of the questions, in turn."""
    on_correct: float = 0.2
    """Factor of the lean on correct paths."""


def node_table(shape: Shape = Shape(), leans: Mapping[str, float] = LEANS, seed: int = 0) -> pa.Table:
    """Four paths per question, two of them correct."""
    rows = []
    for question in range(shape.questions):
        tokens = np.random.default_rng([seed, question]).integers(0, 50, (4, shape.length))
        tokens[:, : shape.shared] = tokens[0, : shape.shared]
        for path in range(4):
            for depth in range(shape.length):
                about = {
                    "question": question,
                    "path": path,
                    "correct": path < 2,
                    "pass_rate": shape.pass_rates[question % len(shape.pass_rates)],
                    "depth": depth,
                    "length": shape.length,
                    "token": int(tokens[path, depth]),
                }
                state = [seed, question, *map(int, tokens[path, : depth + 1])]
                factor = shape.on_correct if path < 2 and depth > shape.shared else 1.0
                for number, (teacher, lean) in enumerate(leans.items()):
                    rows.append(about | {"teacher": teacher} | node(state, number, factor * lean, about["token"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def node(state: list[int], teacher: int, lean: float, token: int) -> dict[str, Any]:
    """The columns of one state: the student's and the tree's from the state alone, the teacher's from its lean."""
    student = np.random.default_rng(state)
    children = int(student.integers(0, 5))
    support = [token, *(50 + np.arange(4))][:children]
    p = student.dirichlet(np.ones(children + 1))[:children]
    p_succ = student.uniform(0, 1, children)
    noise = np.random.default_rng([*state, teacher]).normal(0, 1.0, children)
    lifted = p * np.exp(lean * (p_succ - 0.5) + noise)
    q = lifted / (lifted.sum() + (1 - p.sum())) if children else p
    spread = float(np.ptp(p_succ)) if children else np.nan
    kl = float(np.abs(np.log(p / q)).sum() if children else student.uniform(0, 0.1))
    return {
        "support": support,
        "p": p,
        "q": q,
        "p_succ": p_succ,
        "visits": student.integers(20, 200, children).astype(float),
        "success_range": spread,
        "decision": children > 1 and spread > 0,
        "advantage": float((q / q.sum() - p / p.sum()) @ p_succ) if children > 1 else np.nan,
        "kl": kl,
        "js": kl / 2,
        "l2": kl**2,
        "similarity": -kl,
        "cosine/gkd": cosine(p, p_succ, np.log(q / p)) if children > 1 else np.nan,
    }


def cosine(p: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two gradients `p (f - fbar)` on the support, p renormalised (eq. 2.11)."""
    p = p / p.sum()
    item, other = (p * (values - p @ values) for values in (first, second))
    return float(item @ other / np.linalg.norm(item) / np.linalg.norm(other))
