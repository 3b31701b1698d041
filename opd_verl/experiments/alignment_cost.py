"""Measures the cost of alignment: rollouts per decision point for several allocations, and memory per million nodes.

    python -m opd_verl.experiments.alignment_cost

The language of `opd_verl.experiments.markov` has two halves here: a change between them decides how a response ends.
Three allocations spend the same number of rollouts beyond the initial ones: more initial rollouts; equal visits for
every token of every path; targeted rollouts. The last row brings every token to as many visits as a target gets. The
share of the teacher's gradient is the part of its length, summed over all nodes of the paths, at decision points.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opd_verl.alignment.gradients import local
from opd_verl.alignment.gradients.node_table import COSINE, NodeSettings, question_nodes, sides
from opd_verl.alignment.tree.enrich import enrich, orders
from opd_verl.alignment.tree.generation_tree import GenerationTree, PackedRollouts
from opd_verl.alignment.tree.question import Path, QuestionTree
from opd_verl.alignment.tree.targets import TargetSettings
from opd_verl.experiments.markov import Language, LanguageSampler, ask, make_language
from opd_verl.utils.markdown import markdown_table

HEADS = (
    "allocation",
    "rollouts per question",
    "decision points",
    "rollouts per decision point",
    "decision points with a range of success >= 0.2",
    "share of the teacher's gradient",
    "right sign",
    "mean abs error of the cosine",
)
TARGETS = TargetSettings(first_window=20)
UNIFORM = replace(TARGETS, first_window=10**9, by_gradient=10**9, by_difference=0)
LARGE_RANGE = 0.2
TEACHER = "good"


@dataclass(frozen=True)
class Setting:
    """A language, the number of questions, and the number of initial rollouts per question."""

    language: Language
    questions: int
    initial: int
    seed: int

    def asked(self, more: int = 0) -> list[QuestionTree]:
        """Makes the questions, with `more` initial rollouts for each on the same paths."""
        questions = [ask(self.language, number, self.initial, 2, self.seed) for number in range(self.questions)]
        generator = np.random.default_rng((self.seed, 1))
        for question in questions:
            responses = self.language.sample([], more, generator) if more else []
            paths, correct = [tokens for tokens, _ in responses], [right for _, right in responses]
            question.tree.add(PackedRollouts.of(paths, [0] * more, correct))
        return questions

    def sampler(self, questions: Sequence[QuestionTree]) -> LanguageSampler:
        """Makes the sampler of targeted rollouts."""
        generator = np.random.default_rng((self.seed, 2))
        return LanguageSampler(self.language, {question.number: question for question in questions}, generator)


def targeted(setting: Setting, settings: TargetSettings) -> tuple[list[QuestionTree], int]:
    """Returns the questions with targeted rollouts, and the number of these rollouts."""
    questions = setting.asked()
    sampler = setting.sampler(questions)
    return questions, enrich(questions, lambda _, wanted: sampler.orders(wanted()), settings).rollouts


def uniform(setting: Setting, count: int) -> list[QuestionTree]:
    """Returns the questions with equal visits for every token of every path, as many as `count` rollouts allow."""
    questions, low, high = setting.asked(), 1, 10_000

    def needed(enough: int) -> int:
        settings = replace(UNIFORM, enough=enough, per_request=1)
        return sum(order.count for order in orders(questions, range(10**9), settings))

    # Bisection: the rollouts needed grow with the visits per token.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= count else (low, middle - 1)
    return targeted(setting, replace(UNIFORM, enough=low, per_request=1))[0]


@dataclass(frozen=True)
class DecisionPoint:
    """A node where the branches differ in success."""

    cosine: float
    """Cosine of the teacher's and the ideal gradient, measured from rollouts."""
    exact: float
    """Exact cosine over the same children."""
    spread: float
    """Largest less smallest success probability of the children."""
    pull: float
    """Length of the teacher's gradient, nats."""


def row(name: str, setting: Setting, questions: Sequence[QuestionTree], rollouts: int) -> list[str]:
    """Returns the table's row of one allocation; a node that several paths share counts once for each path."""
    points = [point for question in questions for point in decision_points(setting.language, question)]
    every = sum(pulls(path).sum().item() for question in questions for path in question.paths)
    large, each = sum(point.spread >= LARGE_RANGE for point in points), rollouts / setting.questions
    right = np.mean([np.sign(point.cosine) == np.sign(point.exact) for point in points])
    error = np.mean([abs(point.cosine - point.exact) for point in points])
    share = sum(point.pull for point in points) / every
    counts = [f"{each:,.0f}", str(len(points)), f"{rollouts / max(len(points), 1):,.1f}", str(large)]
    return [name, *counts, f"{share:.1%}", f"{right:.1%}", f"{error:.3f}"]


def pulls(path: Path) -> Tensor:
    """Returns the length of the gradient of KL(p || q), q the teacher `good`, at each token of a path [L]."""
    log_p, log_q = sides(path, TEACHER)
    return local.local_gradient(log_p.exp(), log_q - log_p, torch.ones_like(log_p, dtype=torch.bool)).norm(dim=-1)


def decision_points(language: Language, question: QuestionTree) -> list[DecisionPoint]:
    """Returns all decision points of a question's paths."""
    points = []
    for node in question_nodes(question, NodeSettings()).to_pylist():
        if node["teacher"] == TEACHER and node["decision"]:
            path, depth = question.paths[node["path"]], node["depth"]
            log_p, log_q = (side[depth : depth + 1] for side in sides(path, TEACHER))
            truth = torch.from_numpy(language.children(path)[depth])[None]
            member = torch.zeros_like(truth, dtype=torch.bool)
            member[0, node["support"]] = True
            ideal = local.local_gradient(log_p.exp(), truth, member)
            gkd = local.local_gradient(log_p.exp(), log_q - log_p, member)
            exact = local.cosine(ideal, gkd).item()
            point = DecisionPoint(node[COSINE + "gkd"], exact, node["success_range"], pulls(path)[depth].item())
            points.append(point)
    return points


def memory(nodes: int, length: int = 1000) -> tuple[int, float, float]:
    """Builds a tree of `nodes` nodes. Returns bytes of its arrays, growth of the process in bytes, and seconds."""
    generator, tree = np.random.default_rng(0), GenerationTree()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    while len(tree) < nodes:
        paths = [generator.integers(0, 150_000, length).astype(np.int32) for _ in range(100)]
        tree.add(PackedRollouts.of(paths, [0] * 100, [True] * 100))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Linux gives ru_maxrss in KiB.
    return tree.nbytes, peak * 1024.0, time.monotonic() - started


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    nbytes, peak, seconds = memory(1_000_000)
    print(f"a million nodes: {nbytes / 1e6:.0f} MB of arrays, {peak / 1e6:.0f} MB at the peak, {seconds:.1f} s\n")
    language = make_language(words=4, sharpness=0.5, ending=2.2, commitment=2.8, length=100, seed=3)
    setting = Setting(language, options.questions, 200, options.seed)
    questions, count = targeted(setting, TARGETS)
    total, each = 200 * options.questions, count // options.questions
    makers: dict[str, Callable[[], list[QuestionTree]]] = {
        "more initial rollouts": lambda: setting.asked(each),
        "uniform": lambda: uniform(setting, count),
        "targeted": lambda: questions,
    }
    rows = [row("initial rollouts alone", setting, setting.asked(), total)]
    rows += [row(name, setting, make(), total + count) for name, make in makers.items()]
    every, more = targeted(setting, UNIFORM)
    rows.append(row(f"uniform, to {UNIFORM.enough} visits", setting, every, total + more))
    print(markdown_table(HEADS, rows))


if __name__ == "__main__":
    main()
