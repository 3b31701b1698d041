"""Objectives of the user's own: the registry, and the example of the module's docstring."""

import inspect
from collections.abc import Iterator
from textwrap import dedent

import pytest
import torch
from torch import Tensor

from opd_verl import objective_hooks
from opd_verl.objective_hooks import OBJECTIVE_HOOKS, ObjectiveInputs, register_objective


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Objectives that a test registers do not outlive it."""
    before = dict(OBJECTIVE_HOOKS)
    yield
    OBJECTIVE_HOOKS.clear()
    OBJECTIVE_HOOKS.update(before)


def example_inputs(tokens: int = 3, k: int = 2) -> ObjectiveInputs:
    generator = torch.Generator().manual_seed(6)

    def log_probs(*shape: int) -> Tensor:
        return -torch.rand(*shape, generator=generator) - 0.1

    member = torch.ones(tokens, k, dtype=torch.bool)
    member[1, 1] = False
    return ObjectiveInputs(
        log_p=log_probs(tokens).requires_grad_(),
        log_p_old=log_probs(tokens),
        log_q=log_probs(tokens),
        advantage=log_probs(tokens),
        log_p_support=log_probs(tokens, k).requires_grad_(),
        log_p_old_support=None,
        log_q_support=log_probs(tokens, k),
        member=member,
        teacher_entropy=-log_probs(tokens),
        eps_low=0.2,
        eps_high=0.28,
    )


def test_a_name_is_taken_once() -> None:
    def first(inputs: ObjectiveInputs) -> Tensor:
        return inputs.log_p

    def second(inputs: ObjectiveInputs) -> Tensor:
        return -inputs.log_p

    assert register_objective("mine")(first) is first
    assert register_objective("mine")(first) is first
    with pytest.raises(ValueError, match="objective 'mine' is already registered"):
        register_objective("mine")(second)
    assert OBJECTIVE_HOOKS["mine"] is first and "mine" in OBJECTIVE_HOOKS and sorted(OBJECTIVE_HOOKS)[-1] == "mine"


def test_the_example_of_the_docstring_works() -> None:
    doc = inspect.getdoc(objective_hooks)
    assert doc is not None
    code = dedent("\n".join(line for line in doc.splitlines() if line.startswith("    ")))
    exec("from torch import Tensor\n" + code, {})
    inputs = example_inputs()
    loss = OBJECTIVE_HOOKS["squared_log_ratio"](inputs)
    expected = [0.0, 0.0, 0.0]
    for token in range(3):
        for column in range(2):
            gap = (inputs.log_p_support[token, column] - inputs.log_q_support[token, column]).item()
            expected[token] += 0.5 * gap**2 * inputs.member[token, column].item()
    assert loss.tolist() == pytest.approx(expected)
    loss.sum().backward()
    gap = (inputs.log_p_support - inputs.log_q_support).detach()
    assert inputs.log_p_support.grad is not None
    torch.testing.assert_close(inputs.log_p_support.grad, gap * inputs.member)
    assert inputs.log_p_support.grad[1, 1] == 0


def test_inputs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        example_inputs().eps_low = 0.0  # type: ignore[misc]
