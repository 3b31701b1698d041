"""Estimates, gradients and cosines on a language whose success probabilities are known exactly."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from opd_verl.alignment.gradients import local
from opd_verl.alignment.gradients.node_table import COSINE, NodeSettings, children_of, question_nodes, sides
from opd_verl.alignment.tree.enrich import Budget, Spent, enrich, orders, within
from opd_verl.alignment.tree.generation_tree import NOBODY
from opd_verl.alignment.tree.question import QuestionTree
from opd_verl.alignment.tree.targets import TargetSettings, depth_windows
from opd_verl.experiments.markov import Language, LanguageSampler, ask, make_language

LANGUAGE = make_language()
TARGETS = TargetSettings(first_window=5)


def measured(
    enough: int, count: int = 6, rollouts: int = 200, budget: Budget | None = None
) -> tuple[list[QuestionTree], Spent]:
    questions = [ask(LANGUAGE, number, rollouts, 2, seed=0) for number in range(count)]
    sampler = LanguageSampler(LANGUAGE, {question.number: question for question in questions}, np.random.default_rng(1))
    settings = TargetSettings(first_window=5, enough=enough)
    return questions, enrich(questions, lambda _, wanted: sampler.orders(wanted()), settings, budget)


@pytest.fixture(scope="module")
def enriched() -> list[QuestionTree]:
    return measured(enough=200)[0]


def errors(questions: Sequence[QuestionTree], least: float = 20.0) -> tuple[Tensor, Tensor]:
    """Estimate less truth for every child of a path that counts, and the deviation that the child's visits promise."""
    collected = []
    for question in questions:
        for path in question.paths:
            children = children_of(question, path, least)
            exact = torch.from_numpy(LANGUAGE.children(path))
            uncertain = children.member & (exact > 0.0) & (exact < 1.0)
            spread = (exact * (1.0 - exact) / children.visits).sqrt()
            collected.append(torch.stack([children.p_succ - exact, spread])[:, uncertain])
    return tuple(torch.cat(collected, -1))  # type: ignore[return-value]


def test_the_closed_form_is_that_of_sampling() -> None:
    actual = LANGUAGE.sample([2], 20_000, np.random.default_rng(0))
    expected = LANGUAGE.success()[LANGUAGE.length - 1, 2]
    assert np.mean([correct for _, correct in actual]) == pytest.approx(expected, abs=4 * (0.25 / 20_000) ** 0.5)


def test_estimates_err_as_their_visits_promise(enriched: list[QuestionTree]) -> None:
    """In units of the promised deviation the errors have mean 0 and deviation 1."""
    error, spread = errors(enriched)
    scores = error / spread
    assert len(scores) > 200
    assert abs(scores.mean()) < 0.35 and 0.8 < scores.std() < 1.25, "children of one node are not independent"


def test_estimates_converge_with_the_root_of_the_rollouts() -> None:
    """16 times the visits, a quarter of the error."""
    coarse, fine = (errors(measured(enough=enough)[0], least=enough)[0].square().mean().sqrt() for enough in (50, 800))
    assert fine / coarse == pytest.approx(0.25, rel=0.25)


def test_counts_of_whole_paths_do_not_converge(enriched: list[QuestionTree]) -> None:
    """In the paper's counts, rollouts launched below a node count there as if the student had come there by itself."""
    scores = []
    for question in enriched:
        for path in question.paths:
            exact, nodes = LANGUAGE.children(path), question.tree.child(question.nodes(path)[:-1, None], path.ids)
            visits, successes = (question.tree.counts[name][nodes] for name in ("visits", "successes"))
            counted = (nodes != NOBODY) & (visits >= 20) & (exact > 0.0) & (exact < 1.0)
            share, exact, visits = successes[counted] / visits[counted], exact[counted], visits[counted]
            scores += ((share - exact) / np.sqrt(exact * (1.0 - exact) / visits)).tolist()
    assert np.std(scores) > 2.0


def test_every_target_has_enough_visits(enriched: list[QuestionTree]) -> None:
    """A child that a launch was ordered for ends with the visits that were wanted, or more."""
    for question in enriched:
        launched = np.flatnonzero(question.tree.counts["launched"][1:]) + 1
        visits = question.tree.counts["free_visits"][launched]
        assert len(launched) > 5 and visits.min() >= 200


def test_a_paths_own_success_is_not_counted_along_it() -> None:
    """Two rollouts that part at once: along either, only the other one counts."""
    question = ask(LANGUAGE, 0, 2, 1, seed=3)
    path = question.paths[0]
    along = question.estimates(without=path).of(question.nodes(path))
    assert along[1][0] == 1.0 and question.estimates().of(question.nodes(path))[1][0] == 2.0


def exact_nodes(question: QuestionTree, language: Language) -> dict[tuple[int, int, str], float]:
    """Cosines from the true success probabilities."""
    collected = {}
    for number, path in enumerate(question.paths):
        member, exact = torch.from_numpy(path.ids != NOBODY), torch.from_numpy(language.children(path))
        for teacher in path.log_q:
            log_p, log_q = sides(path, teacher)
            ideal = local.local_gradient(log_p.exp(), exact, member)
            gkd = local.local_gradient(log_p.exp(), log_q - log_p, member)
            values = local.cosine(ideal, gkd).tolist()
            collected |= {(number, depth, teacher): value for depth, value in enumerate(values)}
    return collected


def test_cosines_are_the_exact_ones() -> None:
    """With every child of a path known well, whatever its probability."""
    settings = TargetSettings(threshold=0.001, first_window=40, by_gradient=10_000, by_difference=0, enough=20_000)
    questions = [ask(LANGUAGE, 0, 200, 1, seed=1)]
    sampler = LanguageSampler(LANGUAGE, {0: questions[0]}, np.random.default_rng(1))
    enrich(questions, lambda _, wanted: sampler.orders(wanted()), settings)
    exact, estimated = exact_nodes(questions[0], LANGUAGE), question_nodes(questions[0], NodeSettings(significant=1.0))
    pairs = [
        (row[COSINE + "gkd"], exact[row["path"], row["depth"], row["teacher"]])
        for row in estimated.to_pylist()
        if len(row["support"]) == LANGUAGE.words + 2
    ]
    assert len(pairs) >= 10
    assert max(abs(item - other) for item, other in pairs) < 0.1


def test_the_mean_of_dr_grpo_is_the_ideal_gradient() -> None:
    """Over many groups of rollouts, at the root: proportional, and unbiased within its noise (eq. 2.5)."""
    generator, matrix = np.random.default_rng(0), LANGUAGE.student[LANGUAGE.words]
    tokens, groups, size = LANGUAGE.words + 2, 400, 64
    p, member = torch.from_numpy(matrix)[None], torch.ones(1, tokens, dtype=torch.bool)
    ideal = local.local_gradient(p, torch.from_numpy(LANGUAGE.success()[LANGUAGE.length - 1])[None], member)
    collected, scales = [], []
    for _ in range(groups):
        responses = LANGUAGE.sample([], size, generator)
        first = torch.tensor([int(path[0]) for path, _ in responses])
        correct = torch.tensor([float(item) for _, item in responses])
        count = torch.bincount(first, minlength=tokens).double()[None]
        successes = torch.bincount(first, weights=correct, minlength=tokens).double()[None]
        mean = correct.mean().item()
        weight = local.dr_grpo_weight(count, successes, mean)
        collected.append(local.sampled_gradient(p, weight, count, member)[0])
        scales.append(1.0 / (mean * (1.0 - mean)) ** 0.5)
    samples = torch.stack(collected)
    # A rollout is a part of its group's mean: (size - 1) / size.
    expected = ideal[0] * float(np.mean(scales)) * (size - 1) / size
    noise = samples.std(0) / groups**0.5
    assert ((samples.mean(0) - expected).abs() < 4.0 * noise).all()
    assert local.cosine(samples.mean(0)[None], ideal).item() > 0.9


def test_the_single_sample_estimators_mean_is_gkd() -> None:
    """Unmasking B.12, enumerated: counts that are p times N."""
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    log_q, member = torch.log(torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64)), torch.ones(1, 3, dtype=torch.bool)
    count = 100 * p
    gradient = local.sampled_gradient(p, count * (log_q - p.log() - 1.0), count, member)
    torch.testing.assert_close(gradient, local.local_gradient(p, log_q - p.log(), member))


def test_windows_double() -> None:
    assert depth_windows(400, 50) == [range(50), range(50, 150), range(150, 350), range(350, 400)]
    assert depth_windows(0, 50) == []


def test_a_budget_of_rollouts_is_kept_and_its_first_targets_are_the_best() -> None:
    questions, spent = measured(enough=100, budget=Budget(rollouts=900))
    assert 0 < spent.rollouts <= 900
    wanted = orders([ask(LANGUAGE, 0, 200, 2, seed=0)], range(5), TARGETS)
    assert [order.target.rank for order in within(wanted, 300)] == sorted(
        order.target.rank for order in within(wanted, 300)
    )
    assert sum(order.count for order in within(wanted, 300)) <= 300 < sum(order.count for order in wanted)
    assert questions


def test_a_budget_of_minutes_goes_by_the_rate_so_far() -> None:
    assert Budget(minutes=2.0).left(used=0, seconds=0.0, initial=(600, 60.0)) == pytest.approx(1200)
    assert Budget(minutes=2.0).left(used=300, seconds=60.0, initial=(600, 60.0)) == pytest.approx(60 * 900 / 120)
    assert Budget(rollouts=10, minutes=2.0).left(20, 0.0, (1, 1.0)) == 0.0
