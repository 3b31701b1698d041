"""The loss object that every actor worker gets: token weights, own denominators, and verl's part of it."""

import math
import pickle
from typing import Any

import pytest
import torch
from loss_harness import EPS_HIGH, EPS_LOW, LENGTHS, PROMPT, SCALE, loss_of
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.utils.losses import ppo_loss

import opd_verl.training.update.policy_loss  # noqa: F401  (registers)
from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ForwardKLConfig, MixConfig, ObjectiveConfig
from opd_verl.objectives.names import Placement, Support
from opd_verl.schema import AGGREGATION_WEIGHTS, OPD_NUM_TOKENS, OPD_WEIGHTS
from opd_verl.training.update.actor_loss import OpdLoss, aggregation_weights, eligible_tokens

MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
SPLITS = [[6], [3, 3], [1] * 6, [1, 5]]
Row = dict[str, Tensor]


def make_rows(weighted: bool) -> list[Row]:
    """Six rollouts; the fourth has no token at all, the fifth none that is eligible."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index, length in enumerate(LENGTHS):
        mask = torch.randint(2, (length,), generator=generator)
        mask[0] = 1
        weights = (torch.rand(length, generator=generator) + 0.5) * (torch.rand(length, generator=generator) > 0.4)
        row = {
            "prompts": torch.ones(PROMPT, dtype=torch.int64),
            "responses": torch.ones(length, dtype=torch.int64),
            "response_mask": mask * (index != 3),
            "old_log_probs": -torch.rand(length, generator=generator) - 0.5,
            "log_probs": -torch.rand(length, generator=generator) - 0.5,
            "ref_log_prob": -torch.rand(length, generator=generator) - 0.5,
            "entropy": torch.rand(length, generator=generator) + 0.1,
            "advantages": torch.randn(length, generator=generator),
            "values": torch.randn(length, generator=generator),
        }
        rows.append(row | ({OPD_WEIGHTS: weights * (index != 4)} if weighted else {}))
    return rows


def counts(rows: list[Row]) -> tuple[int, int]:
    """Response tokens, and those that are eligible."""
    eligible = [row["response_mask"].bool() & (row.get(OPD_WEIGHTS, torch.ones(1)) > 0) for row in rows]
    return sum(int(row["response_mask"].sum()) for row in rows), sum(int(item.sum()) for item in eligible)


def batch_of(rows: list[Row], every: list[Row], dp_size: int = 1) -> Any:
    """A micro-batch of the mini-batch `every`, as verl and our engine lay it out."""
    names = [name for name in rows[0] if name not in ("log_probs", "entropy", "values")]
    fields = {name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged) for name in names}
    data = TensorDict(fields, batch_size=len(rows))
    tokens, eligible = counts(every)
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=tokens, global_batch_size=len(every))
    if OPD_WEIGHTS in rows[0]:
        tu.assign_non_tensor(data, **{OPD_NUM_TOKENS: eligible})
    return data


def whole_sequences(rows: list[Row], name: str, leaf: list[Tensor]) -> Tensor:
    """verl's layout of log_probs and entropy: [prompt + response], each value one position early."""
    parts = [torch.cat([torch.zeros(PROMPT - 1), leaf[row], torch.zeros(1)]) for row in range(len(rows))]
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def model_output(rows: list[Row], log_probs: list[Tensor], entropy: list[Tensor] | None = None) -> dict[str, Tensor]:
    actual = {"log_probs": whole_sequences(rows, "log_probs", log_probs)}
    return actual if entropy is None else actual | {"entropy": whole_sequences(rows, "entropy", entropy)}


EXACT = OpdConfig(objective=ObjectiveConfig(support=Support.student_topk, k=2))
MIXTURE = OpdConfig(mix=MixConfig(task=1.0))
REGULARISED = {"entropy_coeff": 0.1, "use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": "kl"}


def naive_mean(rows: list[Row], losses: list[Tensor], mode: str, eligible_only: bool) -> Tensor:
    """The mean that `loss_agg_mode` defines, token by token; sequences are counted with those that have no token."""
    total, tokens = torch.zeros(()), 0
    for row, loss in zip(rows, losses, strict=True):
        mask = row["response_mask"].bool()
        if eligible_only and OPD_WEIGHTS in row:
            mask = mask & (row[OPD_WEIGHTS] > 0)
        own = torch.stack([loss[t] for t in range(len(loss)) if mask[t]]).sum() if mask.any() else torch.zeros(())
        tokens += int(mask.sum())
        total = total + (own / int(mask.sum()) if mode == "seq-mean-token-mean" and mask.any() else own)
    divisor = {"token-mean": tokens, "token-sum": 1, "seq-mean-token-sum-norm": len(rows) * SCALE}
    return total / divisor.get(mode, len(rows))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
def test_weights_are_those_of_the_aggregation(mode: str, weighted: bool) -> None:
    rows = make_rows(weighted)
    weights = aggregation_weights(batch_of(rows, rows), loss_of(EXACT, mode).config)
    values = [row["values"] * row.get(OPD_WEIGHTS, 1.0) for row in rows]
    expected = naive_mean(rows, values, mode, eligible_only=True)
    flat = torch.cat([row["values"] for row in rows])
    torch.testing.assert_close((weights * flat).sum(), expected)
    mask = torch.cat([row["response_mask"] for row in rows]).bool()
    assert not weights[~mask].any() and weights.shape == flat.shape and not weights.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_without_weights_they_are_verls_to_the_bit(mode: str) -> None:
    rows = make_rows(weighted=False)
    config = loss_of(EXACT, mode).config
    weights = aggregation_weights(batch_of(rows, rows), config)
    padded = torch.nn.utils.rnn.pad_sequence([row["values"] for row in rows], batch_first=True).requires_grad_()
    mask = torch.nn.utils.rnn.pad_sequence([row["response_mask"].float() for row in rows], batch_first=True)
    info = {"batch_num_tokens": counts(rows)[0], "global_batch_size": len(rows), "loss_scale_factor": SCALE}
    agg_loss(padded, mask, mode, dp_size=1, **info).backward()
    assert padded.grad is not None
    assert torch.equal(weights, torch.cat([padded.grad[row, :length] for row, length in enumerate(LENGTHS)]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
def test_micro_batches_and_ranks_change_no_weight(mode: str, split: list[int], dp_size: int, weighted: bool) -> None:
    """verl's gradient mean over ranks divides by dp_size what every weight was multiplied with."""
    rows = make_rows(weighted)
    config = loss_of(EXACT, mode).config
    whole = aggregation_weights(batch_of(rows, rows), config)
    parts = [rows[sum(split[:i]) : sum(split[: i + 1])] for i in range(len(split))]
    actual = torch.cat([aggregation_weights(batch_of(part, rows, dp_size), config) / dp_size for part in parts])
    torch.testing.assert_close(actual, whole)


def test_a_weight_of_0_leaves_the_denominator_and_any_other_does_not() -> None:
    rows = make_rows(weighted=True)
    weights = aggregation_weights(batch_of(rows, rows), loss_of(EXACT).config)
    flat = torch.cat([row[OPD_WEIGHTS] * row["response_mask"] for row in rows])
    tokens, eligible = counts(rows)
    assert 0 < eligible < tokens
    torch.testing.assert_close(weights, flat / eligible)
    assert torch.equal(eligible_tokens(batch_of(rows, rows)), flat > 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_mini_batch_without_a_token_has_weight_0(mode: str) -> None:
    rows = [make_rows(weighted=True)[index] for index in (3, 4)]
    weights = aggregation_weights(batch_of(rows, rows), loss_of(EXACT, mode).config)
    assert not weights.any() and weights.isfinite().all()


def run(loss: OpdLoss, rows: list[Row], with_entropy: bool = False, **output: Tensor) -> Any:
    """Value, gradients of log-probs and entropies, and metrics of one micro-batch that is a mini-batch."""
    leaves = [row["log_probs"].clone().requires_grad_() for row in rows]
    entropies = [row["entropy"].clone().requires_grad_() for row in rows]
    model = model_output(rows, leaves, entropies if with_entropy else None) | output
    batch = batch_of(rows, rows)
    value, metrics = loss(model | {AGGREGATION_WEIGHTS: aggregation_weights(batch, loss.config)}, batch)
    grads = torch.autograd.grad(value, [*leaves, *entropies], allow_unused=True, materialize_grads=True)
    return value.detach(), grads, metrics


def naive_policy(row: Row, log_probs: Tensor) -> Tensor:
    """The clipped surrogate per token."""
    ratio, a = (log_probs - row["old_log_probs"]).exp(), row["advantages"]
    return torch.maximum(-ratio * a, -ratio.clamp(1 - EPS_LOW, 1 + EPS_HIGH) * a)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opd", [OpdConfig(), MIXTURE], ids=["distillation alone", "mixture"])
@pytest.mark.parametrize("loss_mode", ["opd", "opd_none"])
def test_regularisers_see_all_response_tokens_the_policy_loss_its_own(
    mode: str, opd: OpdConfig, loss_mode: str
) -> None:
    """In a mixture the policy loss trains on all response tokens: the task's advantage is everywhere."""
    rows = make_rows(weighted=True)
    value, grads, metrics = run(loss_of(opd, mode, loss_mode, **REGULARISED), rows, with_entropy=True)
    leaves = [row["log_probs"].clone().requires_grad_() for row in rows]
    entropies = [row["entropy"].clone().requires_grad_() for row in rows]
    every = list(zip(rows, leaves, strict=True))
    own = [naive_policy(row, leaf) for row, leaf in every]
    policy = naive_mean(rows, own, mode, eligible_only=not opd.mix.task) * (loss_mode == "opd")
    entropy = naive_mean(rows, entropies, mode, eligible_only=False)
    kl = naive_mean(rows, [leaf - row["ref_log_prob"] for row, leaf in every], mode, eligible_only=False)
    expected = policy - 0.1 * entropy + 0.3 * kl
    torch.testing.assert_close(value, expected.detach())
    expected_grads = torch.autograd.grad(expected, [*leaves, *entropies], allow_unused=True, materialize_grads=True)
    for gradient, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert metrics["actor/pg_loss"].aggregate() == pytest.approx(policy.item(), rel=1e-5, abs=1e-7)
    assert metrics["actor/entropy_loss"].aggregate() == pytest.approx(entropy.item(), rel=1e-5)
    assert metrics["kl_loss"].aggregate() == pytest.approx(kl.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("opd", "weighted"),
    [(OpdConfig(), False), (MIXTURE, False), (MIXTURE, True)],
    ids=["distillation alone", "mixture", "weighted mixture"],
)
def test_where_no_token_is_left_out_it_is_verls_loss_to_the_bit(opd: OpdConfig, weighted: bool) -> None:
    rows = make_rows(weighted)
    loss = loss_of(opd, **REGULARISED)
    value, _, metrics = run(loss, rows, with_entropy=True)
    output = model_output(rows, [row["log_probs"] for row in rows], [row["entropy"] for row in rows])
    expected, verls = ppo_loss(config=loss.config, model_output=output, data=batch_of(rows, rows))
    assert torch.equal(value, expected) and metrics.keys() == verls.keys()


def test_who_sees_which_tokens() -> None:
    assert loss_of(OpdConfig()).own_tokens and loss_of(EXACT).own_tokens
    assert not loss_of(MIXTURE).own_tokens
    loss = loss_of(OpdConfig(), **REGULARISED)
    assert (loss.policy_only.entropy_coeff, loss.policy_only.use_kl_loss) == (0.0, False)
    assert loss.regularisers.policy_loss.loss_mode == "opd_none" and loss.regularisers.entropy_coeff == 0.1
    assert loss.config.policy_loss.loss_mode == "opd" and loss.config.use_kl_loss
    assert (loss.terms.eps_low, loss.terms.eps_high) == (EPS_LOW, EPS_HIGH)


@pytest.mark.parametrize(
    ("loss_mode", "actor", "expected"),
    [
        ("opd", {}, True),
        ("vanilla", {}, True),
        ("opd_none", {}, False),
        ("opd_none", {"entropy_coeff": 0.1}, True),
        ("opd_none", {"use_kl_loss": True}, True),
    ],
)
def test_whether_verls_part_needs_log_probs(loss_mode: str, actor: dict[str, Any], expected: bool) -> None:
    assert loss_of(EXACT, loss_mode=loss_mode, **actor).needs_log_prob_gradient is expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
def test_exact_terms_are_weighted_summed_and_logged(mode: str, weighted: bool) -> None:
    rows = make_rows(weighted)
    divergence = torch.cat([row["values"] for row in rows]).requires_grad_()
    forward = (2.0 * divergence.detach() + 1.0).requires_grad_()
    opd = OpdConfig(objective=EXACT.objective, forward_kl=ForwardKLConfig(placement=Placement.gated))
    loss = loss_of(opd, mode, "opd_none")
    value, _, metrics = run(loss, rows, divergence=divergence, forward_kl=forward)
    collected = {}
    for name, tensor in (("divergence", divergence), ("forward_kl", forward)):
        parts = [item * row.get(OPD_WEIGHTS, 1.0) for item, row in zip(tensor.split(LENGTHS), rows, strict=True)]
        collected[name] = naive_mean(rows, parts, mode, eligible_only=True)
        assert metrics[f"opd/{name}"].aggregate() == pytest.approx(collected[name].item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(value, sum(collected.values(), torch.zeros(())).detach())


def test_the_engines_own_sum_is_taken_as_it_is() -> None:
    """`opd_loss` carries a gradient that the values per token, which only the metrics read, do not."""
    rows = make_rows(weighted=False)
    divergence = torch.cat([row["values"] for row in rows])
    leaf = torch.tensor(3.5, requires_grad=True)
    actor_loss, batch = loss_of(EXACT, loss_mode="opd_none"), batch_of(rows, rows)
    answers = {"divergence": divergence, "opd_loss": 2.0 * leaf}
    answers[AGGREGATION_WEIGHTS] = aggregation_weights(batch, actor_loss.config)
    loss, metrics = actor_loss(model_output(rows, [row["log_probs"] for row in rows]) | answers, batch)
    loss.backward()
    assert loss.item() == 7.0 and leaf.grad == 2.0
    expected = naive_mean(rows, list(divergence.split(LENGTHS)), "token-mean", eligible_only=True).item()
    assert metrics["opd/divergence"].aggregate() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("opd", [OpdConfig(), MIXTURE, EXACT], ids=["sampled", "mixture", "exact"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [3, 4], ids=["no token", "no eligible token"])
def test_a_mini_batch_without_tokens_has_loss_0(opd: OpdConfig, mode: str, index: int) -> None:
    rows = [make_rows(weighted=True)[index]] * 2
    rows = [row | {"advantages": row["advantages"] * 0.0} for row in rows]  # A_opd is weighted: 0 where not eligible
    divergence = torch.ones(2 * LENGTHS[index], requires_grad=True)
    value, grads, metrics = run(loss_of(opd, mode, "opd_none" if opd is EXACT else "opd"), rows, divergence=divergence)
    assert value.item() == 0.0 and not any(grad.any() for grad in grads)
    assert all(math.isfinite(metric.aggregate()) for metric in metrics.values() if isinstance(metric, Metric))


def test_the_loss_can_be_sent_to_a_worker() -> None:
    loss = pickle.loads(pickle.dumps(loss_of(EXACT, **REGULARISED)))
    assert loss == loss_of(EXACT, **REGULARISED)
