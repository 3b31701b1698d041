"""What alignment costs: rollouts per decision point by how they are allocated, and memory per million nodes.

    python -m opd_verl.experiments.alignment_cost

The language is `opd_verl.experiments.markov`'s with two sides: a change of side decides how a response ends.
Allocations take the same number of rollouts besides the initial ones: more initial ones; every token of every path
brought to equal visits; targeted. The last row brings every token to as many visits as targets get. The share of the
teacher's gradient is that of its length, summed over all nodes of the paths, which lies at decision points.
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
from opd_verl.alignment.tree.question import Path, Question
from opd_verl.alignment.tree.targets import TargetSettings
from opd_verl.experiments.markov import Language, LanguageSampler, ask, make_language
from opd_verl.utils.markdown import markdown_table

HEADS = (
    "allocation",
    "rollouts per question",
    "decision points",
    "rollouts per decision point",
    "of them with a range of success >= 0.2",
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
    """A language and how much of it is looked at."""

    language: Language
    questions: int
    initial: int
    seed: int

    def asked(self, more: int = 0) -> list[Question]:
        """The questions; `more` initial rollouts for each, and the same paths."""
        found = [ask(self.language, number, self.initial, 2, self.seed) for number in range(self.questions)]
        generator = np.random.default_rng((self.seed, 1))
        for one in found:
            responses = self.language.sample([], more, generator) if more else []
            paths, correct = [tokens for tokens, _ in responses], [right for _, right in responses]
            one.tree.add(PackedRollouts.of(paths, [0] * more, correct))
        return found

    def sampler(self, questions: Sequence[Question]) -> LanguageSampler:
        """Of targeted rollouts."""
        generator = np.random.default_rng((self.seed, 2))
        return LanguageSampler(self.language, {one.number: one for one in questions}, generator)


def targeted(setting: Setting, settings: TargetSettings) -> tuple[list[Question], int]:
    """The questions with targeted rollouts, and how many these are."""
    questions = setting.asked()
    sampler = setting.sampler(questions)
    return questions, enrich(questions, lambda _, wanted: sampler.orders(wanted()), settings).rollouts


def uniform(setting: Setting, count: int) -> list[Question]:
    """Every token of every path brought to as many visits as `count` rollouts in all allow."""
    questions, low, high = setting.asked(), 1, 10_000

    def needed(enough: int) -> int:
        settings = replace(UNIFORM, enough=enough, per_request=1)
        return sum(one.count for one in orders(questions, range(10**9), settings))

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= count else (low, middle - 1)
    return targeted(setting, replace(UNIFORM, enough=low, per_request=1))[0]


@dataclass(frozen=True)
class Judged:
    """A decision point: the measured cosine, the exact one over the same children, and the range of success."""

    cosine: float
    exact: float
    spread: float
    pull: float
    """Length of the teacher's gradient."""


def row(name: str, setting: Setting, questions: Sequence[Question], rollouts: int) -> list[str]:
    """One allocation; a node that several paths share counts for each."""
    found = [one for question in questions for one in judged(setting.language, question)]
    every = sum(pulls(path).sum().item() for question in questions for path in question.paths)
    large, each = sum(one.spread >= LARGE_RANGE for one in found), rollouts / setting.questions
    right = np.mean([np.sign(one.cosine) == np.sign(one.exact) for one in found])
    error = np.mean([abs(one.cosine - one.exact) for one in found])
    share = sum(one.pull for one in found) / every
    counts = [f"{each:,.0f}", str(len(found)), f"{rollouts / max(len(found), 1):,.1f}", str(large)]
    return [name, *counts, f"{share:.1%}", f"{right:.1%}", f"{error:.3f}"]


def pulls(path: Path) -> Tensor:
    """[L] length of the gradient of KL(p || q) with `good`."""
    log_p, log_q = sides(path, TEACHER)
    return local.local_gradient(log_p.exp(), log_q - log_p, torch.ones_like(log_p, dtype=torch.bool)).norm(dim=-1)


def judged(language: Language, question: Question) -> list[Judged]:
    """All decision points."""
    found = []
    for one in question_nodes(question, NodeSettings()).to_pylist():
        if one["teacher"] == TEACHER and one["decision"]:
            path, depth = question.paths[one["path"]], one["depth"]
            log_p, log_q = (side[depth : depth + 1] for side in sides(path, TEACHER))
            truth = torch.from_numpy(language.children(path)[depth])[None]
            member = torch.zeros_like(truth, dtype=torch.bool)
            member[0, one["support"]] = True
            ideal = local.local_gradient(log_p.exp(), truth, member)
            gkd = local.local_gradient(log_p.exp(), log_q - log_p, member)
            exact = local.cosine(ideal, gkd).item()
            found.append(Judged(one[COSINE + "gkd"], exact, one["success_range"], pulls(path)[depth].item()))
    return found


def memory(nodes: int, length: int = 1000) -> tuple[int, float, float]:
    """A tree of so many nodes: bytes of its arrays, growth of the process at its peak, seconds."""
    generator, tree = np.random.default_rng(0), GenerationTree()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    while len(tree) < nodes:
        paths = [generator.integers(0, 150_000, length).astype(np.int32) for _ in range(100)]
        tree.add(PackedRollouts.of(paths, [0] * 100, [True] * 100))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
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
    makers: dict[str, Callable[[], list[Question]]] = {
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
