"""The `opd:` section becomes the terms that it describes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from objectives_reference import reference_divergence, reference_policy_gradient
from torch import Tensor

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ForwardKLConfig, MixConfig, ObjectiveConfig
from opd_verl.objective_hooks import OBJECTIVE_HOOKS, ObjectiveInputs, register_objective
from opd_verl.objectives.names import Divergence, Placement, Support, Tail, Weighting
from opd_verl.training.update.make_loss import make_terms, objective
from opd_verl.training.update.terms import DivergenceObjective, PolicyGradientObjective

V, EPS_LOW, EPS_HIGH = 9, 0.2, 0.28
IDS = [[4, 1, 7], [0, 8, 3]]
TOPK = [support for support in Support if support not in (Support.sampled, Support.full)]


def mine(inputs: ObjectiveInputs) -> Tensor:
    return inputs.log_p


@pytest.fixture
def registered() -> Iterator[None]:
    register_objective("mine_of_test_compose")(mine)
    yield
    OBJECTIVE_HOOKS.pop("mine_of_test_compose")


def distributions() -> tuple[Tensor, Tensor, Tensor]:
    """log p, log p_old, log q [2, V] in float64."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, V, generator=generator, dtype=torch.float64)
    first, second, third = logits.log_softmax(-1)
    return first, second, third


def inputs_at(log_p: Tensor, member: Tensor) -> ObjectiveInputs:
    _, old, q = distributions()
    ids, zeros = torch.tensor(IDS), torch.zeros(2)
    return ObjectiveInputs(
        log_p=log_p[:, 0],
        log_p_old=zeros,
        log_q=zeros,
        advantage=zeros,
        log_p_support=log_p.gather(-1, ids),
        log_p_old_support=old.gather(-1, ids),
        log_q_support=q.gather(-1, ids),
        member=member,
        teacher_entropy=zeros,
        eps_low=EPS_LOW,
        eps_high=EPS_HIGH,
    )


def test_the_sampled_token_has_no_objective_of_its_own() -> None:
    assert objective(ObjectiveConfig()) is None
    assert not make_terms(OpdConfig(), EPS_LOW, EPS_HIGH).any


@pytest.mark.parametrize("support", [*TOPK, Support.full])
@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("tail", Tail)
def test_a_support_is_an_exact_divergence(support: Support, divergence: Divergence, tail: Tail) -> None:
    config = ObjectiveConfig(support=support, k=3, divergence=divergence, tail=tail, beta=0.3)
    assert objective(config) == DivergenceObjective(divergence, tail, 0.3)


@pytest.mark.parametrize("support", TOPK)
@pytest.mark.parametrize("weighting", Weighting)
def test_paper_compat_is_a_policy_gradient(support: Support, weighting: Weighting) -> None:
    config = ObjectiveConfig(support=support, k=3, paper_compat=True, paper_compat_weights=weighting)
    assert objective(config) == PolicyGradientObjective(weighting)


@pytest.mark.parametrize("paper_compat", [False, True])
def test_a_name_comes_before_all_else(registered: None, paper_compat: bool) -> None:
    config = ObjectiveConfig(name="mine_of_test_compose", support=Support.student_topk, k=3, paper_compat=paper_compat)
    assert objective(config) is mine


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("support", [Support.sampled, Support.union, Support.full])
def test_terms_hold_what_the_section_says(placement: Placement, support: Support) -> None:
    opd = OpdConfig(
        objective=ObjectiveConfig(support=support, k=5),
        forward_kl=ForwardKLConfig(placement=placement, k=7, coefficient=0.5),
        mix=MixConfig(opd=0.25, task=1.0),
    )
    terms = make_terms(opd, 0.1, 0.4)
    assert (terms.support, terms.k, terms.coefficient, terms.forward_kl_coefficient) == (support, 5, 0.25, 0.5)
    assert terms.forward_kl_k == (0 if placement is Placement.none else 7)
    assert (terms.eps_low, terms.eps_high) == (0.1, 0.4)
    assert terms.any == (support is Support.union or placement is not Placement.none)
    assert terms.full == (support is Support.full)


def two_ways(hook: DivergenceObjective | PolicyGradientObjective, naive: list[Tensor], leaves: list[Tensor]) -> None:
    """Value and gradient (of the two logits) against one scalar per row; the second row lacks its last id."""
    member = torch.tensor([[True, True, True], [True, True, False]])
    ours = leaves[0]
    values = hook(inputs_at(ours.log_softmax(-1), member))
    tolerance: dict[str, Any] = {"rtol": 2e-6, "atol": 1e-6}
    torch.testing.assert_close(values.double(), torch.stack(naive), **tolerance)
    (gradient,) = torch.autograd.grad(values.sum(), ours)
    (expected,) = torch.autograd.grad(torch.stack(naive).sum(), leaves[1])
    assert expected.any(-1).all()
    torch.testing.assert_close(gradient, expected, **tolerance)


@pytest.mark.parametrize("divergence", Divergence)
@pytest.mark.parametrize("tail", Tail)
def test_the_divergence_is_the_one_that_is_named(divergence: Divergence, tail: Tail) -> None:
    p, _, q = distributions()
    leaves = [p.clone().requires_grad_() for _ in range(2)]
    naive = [
        reference_divergence(leaves[1][row].softmax(-1), q[row].exp(), ids, divergence, tail, 0.3)
        for row, ids in enumerate([IDS[0], IDS[1][:2]])
    ]
    two_ways(DivergenceObjective(divergence, tail, 0.3), naive, leaves)


@pytest.mark.parametrize("weighting", Weighting)
def test_the_policy_gradient_is_weighted_and_clipped_as_named(weighting: Weighting) -> None:
    p, old, q = distributions()
    leaves = [p.clone().requires_grad_() for _ in range(2)]
    naive = [
        reference_policy_gradient(
            leaves[1][row].softmax(-1), old[row].exp(), q[row].exp(), ids, weighting, EPS_LOW, EPS_HIGH
        )
        for row, ids in enumerate([IDS[0], IDS[1][:2]])
    ]
    two_ways(PolicyGradientObjective(weighting), naive, leaves)
