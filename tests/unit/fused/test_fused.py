"""The fused LM head against float64 autograd on whole logits, and the memory that it keeps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.log_probs import fused_log_probs
from opd_verl.fused.loss import fused_full_divergence, fused_support_loss
from opd_verl.fused.rows import HeadWeights
from opd_verl.fused.statistics import row_statistics
from opd_verl.fused.topk import BLOCK, block_topk
from opd_verl.objectives.divergence import support_divergence
from opd_verl.objectives.names import Divergence, Tail

SHAPES = [(1, 3, 5, 5), (7, 8, 300, 300), (37, 11, 641, 601), (16, 4, 129, 128)]
"""(rows, hidden size, rows of the head, ids of the tokenizer): odd sizes, with and without padding rows."""
WIDTH, BETA, CHUNK = 4, 0.3, 10
DTYPES = [torch.float32, torch.bfloat16]


class Problem:
    """Random hidden states and heads, rounded to `dtype`, and what both sides compute from them."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, heat: bool, bias: bool, seed: int = 0) -> None:
        rows, hidden, self.head_rows, self.limit = shape
        g = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(rows, hidden, generator=g).to(dtype).requires_grad_()
        self.weight = torch.randn(self.head_rows, hidden, generator=g).to(dtype).requires_grad_()
        self.bias = torch.randn(self.head_rows, generator=g).to(dtype).requires_grad_() if bias else None
        self.temperature = torch.rand(rows, generator=g) + 0.5 if heat else None
        self.ids = torch.randint(self.limit, (rows, WIDTH), generator=g)
        self.ids[:, 1] = self.ids[:, 0]  # the sampled token is often in the support too
        self.weights = torch.rand(rows, generator=g)
        self.weights[0] = 0.0
        self.teacher_hidden = torch.randn(rows, 3, generator=g).to(dtype)
        self.teacher = LMHead(torch.randn(self.limit, 3, generator=g).to(dtype), None, 1.0, None, 0.9)

    @property
    def head(self) -> HeadWeights:
        return HeadWeights(self.weight, self.bias, self.limit)

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def double(self) -> tuple[list[Tensor], Tensor]:
        """Leaves in float64 and log p [N, limit] from whole logits."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        logits = leaves[0] @ leaves[1][: self.limit].T + (leaves[2][: self.limit] if self.bias is not None else 0.0)
        if self.temperature is not None:
            logits = logits / self.temperature[:, None].double()
        return leaves, logits - logits.exp().sum(-1, keepdim=True).log()

    @property
    def log_q(self) -> Tensor:
        return (self.teacher_hidden.double() @ self.teacher.weight.double().T / 0.9).log_softmax(-1)


def assert_gradients(problem: Problem, ours: Tensor, expected: Tensor, leaves: list[Tensor], factor: float) -> None:
    (ours * factor).backward()
    (expected * factor).backward()
    exact = problem.hidden.dtype == torch.float32
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5 if exact else 3e-2, abs=1e-5 if exact else 3e-2)
    for leaf, reference in zip(problem.leaves, leaves, strict=True):
        error = (leaf.grad.double() - reference.grad).norm() / reference.grad.norm().clamp(min=1e-12)
        assert error < (1e-5 if exact else 3e-2), (leaf.shape, error.item())
        assert not leaf.grad[problem.limit :].any() or leaf is problem.hidden


GRID = pytest.mark.parametrize(
    ("shape", "dtype", "heat", "bias"),
    [
        (shape, dtype, heat, bias)
        for shape in SHAPES
        for dtype in DTYPES
        for heat, bias in ((False, False), (True, True))
    ],
)


@GRID
@pytest.mark.parametrize("with_entropy", [False, True])
def test_log_probs_and_entropy(
    shape: tuple[int, ...], dtype: torch.dtype, heat: bool, bias: bool, with_entropy: bool
) -> None:
    problem = Problem(shape, dtype, heat, bias)
    log_p, entropy = fused_log_probs(
        problem.hidden, problem.head, problem.ids, problem.temperature, with_entropy, rows=CHUNK
    )
    leaves, reference = problem.double()
    expected = (reference.gather(-1, problem.ids) * torch.arange(1.0, WIDTH + 1)).sum()
    ours = (log_p * torch.arange(1.0, WIDTH + 1)).sum()
    assert log_p.dtype == torch.float32 and (entropy is not None) == with_entropy
    if entropy is not None:
        ours = ours + (entropy.square() * problem.weights).sum()
        expected = expected + ((-(reference.exp() * reference).sum(-1)).square() * problem.weights).sum()
    assert_gradients(problem, ours, expected, leaves, factor=0.7)


def support_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A clipped ratio on the first column and a divergence on the others: all that the terms are made of."""
    divergence = support_divergence(log_p[:, 1:], log_q, Divergence.reverse, Tail.renorm)
    return divergence - log_p[:, 0].exp().clamp(max=0.5)


@GRID
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_support_loss(shape: tuple[int, ...], dtype: torch.dtype, heat: bool, bias: bool, factor: float) -> None:
    problem = Problem(shape, dtype, heat, bias)
    log_q = problem.log_q.gather(-1, problem.ids[:, 1:])
    done = fused_support_loss(
        problem.hidden,
        problem.head,
        problem.ids,
        lambda log_p, rows: support_loss(log_p, log_q[rows]),
        problem.weights,
        problem.temperature,
        topk=3,
        rows=CHUNK,
    )
    leaves, reference = problem.double()
    losses = support_loss(reference.gather(-1, problem.ids), log_q)
    assert_gradients(problem, done.loss, (losses * problem.weights).sum(), leaves, factor)
    assert not done.token_losses.requires_grad and not done.log_p.requires_grad
    if dtype == torch.float32:
        torch.testing.assert_close(done.token_losses.double(), losses, rtol=1e-5, atol=1e-5)
        assert torch.equal(done.topk_ids, reference.topk(3).indices)


@GRID
@pytest.mark.parametrize("divergence", list(Divergence))
def test_full_divergence(
    shape: tuple[int, ...], dtype: torch.dtype, heat: bool, bias: bool, divergence: Divergence
) -> None:
    problem = Problem(shape, dtype, heat, bias)
    done = fused_full_divergence(
        problem.hidden,
        problem.head,
        problem.teacher_hidden,
        problem.teacher,
        divergence,
        problem.weights,
        problem.ids[:, 0],
        BETA,
        problem.temperature,
        rows=CHUNK,
    )
    leaves, reference = problem.double()
    losses = support_divergence(reference, problem.log_q, divergence, Tail.none, BETA)
    assert_gradients(problem, done.loss, (losses * problem.weights).sum(), leaves, factor=1.3)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    expected = reference.gather(-1, problem.ids[:, :1])
    torch.testing.assert_close(done.log_p.double(), expected, rtol=tolerance, atol=tolerance)


@GRID
def test_statistics(shape: tuple[int, ...], dtype: torch.dtype, heat: bool, bias: bool) -> None:
    problem = Problem(shape, dtype, heat, bias)
    bias_V = None if problem.bias is None else problem.bias.detach()[: problem.limit]
    head = LMHead(problem.weight.detach()[: problem.limit], bias_V, 1.0, None, 1.0)
    actual = row_statistics(head, problem.hidden.detach(), problem.ids, 3, problem.temperature, rows=CHUNK)
    _, reference = problem.double()
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for ours, expected in (
        (actual.log_p, reference.gather(-1, problem.ids)),
        (actual.entropy, -(reference.exp() * reference).sum(-1)),
        (actual.topk_log_p, reference.topk(3).values),
    ):
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weight_frozen", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
def test_no_rows_and_frozen_heads(rows: int, weight_frozen: bool) -> None:
    """An empty micro-batch gives 0 and still runs backward; a frozen head (LoRA) gets no gradient."""
    problem = Problem((3, 4, 20, 20), torch.float32, False, False)
    problem.weight.requires_grad_(not weight_frozen)
    hidden, ids = problem.hidden[:rows], problem.ids[:rows]
    done = fused_support_loss(hidden, problem.head, ids, lambda log_p, _: log_p.sum(-1), torch.ones(rows))
    log_p, _ = fused_log_probs(hidden, problem.head, ids)
    (done.loss + log_p.sum()).backward()
    assert problem.hidden.grad is not None and bool(problem.hidden.grad.any()) == (rows > 0)
    assert (problem.weight.grad is None) == weight_frozen
    assert math.isfinite(done.loss.item()) and (rows or done.loss.item() == 0.0)


def test_gradients_are_given_away_once() -> None:
    problem = Problem((3, 4, 20, 20), torch.float32, False, False)
    done = fused_support_loss(
        problem.hidden, problem.head, problem.ids, lambda log_p, _: log_p.sum(-1), problem.weights
    )
    done.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        done.loss.backward()


def test_bf16_keeps_the_gradient_of_a_student_close_to_its_teacher() -> None:
    """Where p is near q the gradient's two terms nearly cancel at the support: bfloat16 must not round that away."""
    torch.manual_seed(0)
    rows, hidden, ids = 64, 32, torch.arange(16).expand(64, 16)
    h = torch.randn(rows, hidden).bfloat16().requires_grad_()
    weight = (0.3 * torch.randn(400, hidden)).bfloat16()
    exact = h.detach().double().requires_grad_()
    log_p = (exact @ weight.double().T).log_softmax(-1).gather(-1, ids)
    log_q = (log_p + 0.02 * torch.randn(rows, 16)).detach()

    def loss(log_p: Tensor, at: slice) -> Tensor:
        return support_divergence(log_p, log_q[at], Divergence.reverse, Tail.renorm)

    loss(log_p, slice(None)).sum().backward()
    done = fused_support_loss(h, HeadWeights(weight, None, 400), ids, loss, torch.ones(rows))
    done.loss.backward()
    plain = h.detach().clone().requires_grad_()
    loss((plain @ weight.T).float().log_softmax(-1).gather(-1, ids), slice(None)).sum().backward()
    ours, theirs = ((x.grad.double() - exact.grad).norm() / exact.grad.norm() for x in (h, plain))
    assert ours <= 1.05 * theirs, (ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5 * BLOCK), st.data())
def test_block_topk(rows: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, min(width, 20)))
    seed = data.draw(st.integers(0, 1000))
    values = torch.randperm(rows * width, generator=torch.Generator().manual_seed(seed)).view(rows, width).float()
    ours, expected = block_topk(values, k), values.topk(k)
    assert torch.equal(ours[0], expected.values) and torch.equal(ours[1], expected.indices)


def test_no_tensor_of_all_logits_is_made() -> None:
    """Every tensor that the pass makes, forward and backward, has fewer elements than tokens x vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: object, types: object, args: tuple = (), kwargs: dict | None = None):
            nonlocal largest
            actual = function(*args, **(kwargs or {}))  # type: ignore[operator]
            for tensor in actual if isinstance(actual, tuple | list) else [actual]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return actual

    problem = Problem((64, 4, 1000, 1000), torch.float32, False, False)
    with Watch():
        done = fused_support_loss(
            problem.hidden, problem.head, problem.ids, lambda log_p, _: log_p.sum(-1), problem.weights, rows=8
        )
        done.loss.backward()
        log_p, entropy = fused_log_probs(problem.hidden, problem.head, problem.ids, with_entropy=True, rows=8)
        (log_p.sum() + entropy.sum()).backward()  # type: ignore[union-attr]
    assert 8 * 1000 <= largest < 64 * 1000 / 4
