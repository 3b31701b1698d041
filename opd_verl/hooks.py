"""Hooks on tokens: rewards, masks and weights. Pure functions of `RewardInputs`, named in the `opd:` section.

* `opd.rewards`: a reward hook gives [B, R], nats; r_t is the sum of all named hooks.
* `opd.tokens.masks`: a mask hook gives [B, R], bool or 0/1; distillation trains on the tokens that all masks keep.
* `opd.tokens.weights`: a weight hook gives [B, R], finite and not negative; the product multiplies a token's loss.

    from opd_verl.hooks import RewardInputs, register_mask, register_reward

    @register_reward("clamped_reverse_kl")
    def clamped_reverse_kl(inputs: RewardInputs) -> Tensor:
        return (inputs.log_q - inputs.log_p_old).clamp(-5.0, 5.0)

    @register_mask("after_the_first_256")
    def after_the_first_256(inputs: RewardInputs) -> Tensor:
        return inputs.position >= 256

`opd.plugins=[my_package.my_hooks]` imports the module with the hooks. Values where `inputs.mask` is 0 are not read. A
hook may log a number: `inputs.metrics["opd/my_name"] = 1.0`. credit/README.md 1 and 2 have the built-in formulas.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opd_verl.config.registry import Registry
from opd_verl.config.sections import TokenConfig
from opd_verl.credit import token_masks as masks
from opd_verl.credit import token_weights as weights
from opd_verl.credit.baseline import expected_reward
from opd_verl.credit.inputs import RewardInputs
from opd_verl.metrics.step import token_mean
from opd_verl.objectives.names import Truncation

RewardHook = Callable[[RewardInputs], Tensor]
MaskHook = Callable[[RewardInputs], Tensor]
WeightHook = Callable[[RewardInputs], Tensor]
REWARD_HOOKS: Registry[RewardHook] = Registry("reward hook")
MASK_HOOKS: Registry[MaskHook] = Registry("token mask")
WEIGHT_HOOKS: Registry[WeightHook] = Registry("token weight")

KNOWS_CORRECTNESS = "a task reward whose score tells correct from incorrect"
KNOWS_TEACHER_ENTROPY = "the teacher's entropy, which this run does not score"


def register_reward(name: str) -> Callable[[RewardHook], RewardHook]:
    """Registers a reward hook under `name`; a name taken by another function is a ValueError."""
    return REWARD_HOOKS.register(name)


def register_mask(name: str) -> Callable[[MaskHook], MaskHook]:
    """Registers a token mask under `name`; a name taken by another function is a ValueError."""
    return MASK_HOOKS.register(name)


def register_weight(name: str) -> Callable[[WeightHook], WeightHook]:
    """Registers a token weight under `name`; a name taken by another function is a ValueError."""
    return WEIGHT_HOOKS.register(name)


def call_hook(hooks: Registry[Callable[[RewardInputs], Tensor]], name: str, inputs: RewardInputs) -> Tensor:
    """The named hook's tensor [B, R].

    Raises:
        ValueError: the tensor has another shape.
    """
    values, shape = hooks[name](inputs), inputs.log_q.shape
    if values.shape != shape:
        raise ValueError(f"{hooks.kind} {name!r} returned {tuple(values.shape)}, expected {tuple(shape)}")
    return values


def total_reward(inputs: RewardInputs, names: Sequence[str]) -> Tensor:
    """r_t [B, R], nats: the sum of the named hooks, 0 where the mask is 0.

    Raises:
        ValueError: a hook's tensor has another shape, or the sum is not finite on an unmasked token.
    """
    total = torch.zeros_like(inputs.log_q)
    for name in names:
        total = total + call_hook(REWARD_HOOKS, name, inputs)
    total = torch.where(inputs.mask.bool(), total, 0.0)  # not `total * mask`: a masked NaN would stay NaN
    if not total.isfinite().all():
        count = int((~total.isfinite()).sum())
        raise ValueError(f"the sum of the reward hooks {list(names)} is not finite on {count} tokens")
    return total


def token_weights(inputs: RewardInputs) -> tuple[Tensor | None, dict[str, float]]:
    """Weight of every response token in distillation, and the metrics of the masks.

    Returns:
        The product of the truncation policy and of all masks and weights in `inputs.tokens`, float32 [B, R], 0 where
        the mask is 0; None where nothing is configured. `opd/kept_share`: share of response tokens with a positive
        weight. `opd/kept_share/<mask>`: share that this mask alone keeps.

    Raises:
        ValueError: a hook's tensor has another shape or a forbidden value, or a hook needs what the run lacks.
    """
    tokens = inputs.tokens
    if tokens is None or not (tokens.masks or tokens.weights or tokens.truncated is not Truncation.keep):
        return None, {}
    product = outside_truncation(inputs, tokens).float()
    shares = {}
    for name in tokens.masks:
        kept = kept_tokens(name, inputs)
        shares[f"opd/kept_share/{name}"] = token_mean(kept, inputs.mask)
        product = product * kept
    for name in tokens.weights:
        product = product * token_weight(name, inputs)
    return product, shares | {"opd/kept_share": token_mean(product > 0, inputs.mask)}


def outside_truncation(inputs: RewardInputs, tokens: TokenConfig) -> Tensor:
    """Tokens that the truncation policy leaves to distillation, bool [B, R]."""
    if tokens.truncated is Truncation.keep:
        return inputs.mask.bool()
    truncated = required(
        inputs.truncated, f"opd.tokens.truncated={tokens.truncated}", "to know which rollouts were cut"
    )
    return masks.truncated_mask(tokens.truncated, truncated, inputs.mask, tokens.tail_tokens)


def kept_tokens(name: str, inputs: RewardInputs) -> Tensor:
    """Tokens that the named mask keeps, bool [B, R]; meaningless where `inputs.mask` is 0.

    Raises:
        ValueError: the hook gave a value other than 0 and 1 on an unmasked token.
    """
    kept = call_hook(MASK_HOOKS, name, inputs)
    if not ((kept == 0) | (kept == 1) | ~inputs.mask.bool()).all():
        raise ValueError(f"token mask {name!r} returned values other than 0 and 1; register it as a weight")
    return kept == 1


def token_weight(name: str, inputs: RewardInputs) -> Tensor:
    """The named weight, float32 [B, R], 0 where masked.

    Raises:
        ValueError: the hook gave a negative or non-finite value on an unmasked token.
    """
    weight = torch.where(inputs.mask.bool(), call_hook(WEIGHT_HOOKS, name, inputs), 0.0).float()
    if not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError(f"token weight {name!r} returned values that are negative or not finite")
    return weight


def required(value: Tensor | None, reader: str, content: str) -> Tensor:
    """`value`, or a ValueError that names the reader and the content which the run lacks."""
    if value is None:
        raise ValueError(f"{reader} needs {content}")
    return value


def token_settings(inputs: RewardInputs) -> TokenConfig:
    """The section `opd.tokens`, which masks and weights read."""
    assert inputs.tokens is not None
    return inputs.tokens


@register_reward("reverse_kl")
def reverse_kl(inputs: RewardInputs) -> Tensor:
    """`r_t = log q_t(y_t) - log p_old,t(y_t)`: minus the sampled reverse KL (Capacity eq. 7, EOPD eq. 6)."""
    return inputs.log_q - inputs.log_p_old


@register_reward("reverse_kl_baseline")
def reverse_kl_baseline(inputs: RewardInputs) -> Tensor:
    """`-E_{v ~ p_old}[log q(v) - log p_old(v)]` over the student's top-k, nats: a baseline of `reverse_kl`.

    Named beside `reverse_kl` in `opd.rewards`, it lowers the variance (credit/README.md 5).
    """
    if inputs.log_p_topk is None or inputs.log_q_topk is None:
        raise ValueError("reverse_kl_baseline reads the student's top-k: set opd.objective.k above 0 (16)")
    return -expected_reward(inputs.log_p_topk, inputs.log_q_topk)


@register_mask("top_student_entropy")
def top_student_entropy(inputs: RewardInputs) -> Tensor:
    """The `share` of each rollout's tokens with the highest student entropy (Capacity 5.3)."""
    return masks.top_share(inputs.student_entropy, inputs.mask, token_settings(inputs).share)


@register_mask("top_teacher_entropy")
def top_teacher_entropy(inputs: RewardInputs) -> Tensor:
    """The `share` of each rollout's tokens with the highest teacher entropy."""
    entropy = required(inputs.teacher_entropy, "top_teacher_entropy", KNOWS_TEACHER_ENTROPY)
    return masks.top_share(entropy, inputs.mask, token_settings(inputs).share)


@register_mask("top_either_entropy")
def top_either_entropy(inputs: RewardInputs) -> Tensor:
    """Tokens in `top_student_entropy` or `top_teacher_entropy`: up to twice the `share`."""
    return masks.either(top_student_entropy(inputs), top_teacher_entropy(inputs))


@register_mask("drop_q3")
def drop_q3(inputs: RewardInputs) -> Tensor:
    """All tokens outside quadrant Q3, where a confident student gets a negative r_t (Capacity table 5)."""
    return masks.drop_q3(reverse_kl(inputs), inputs.student_entropy, inputs.mask, token_settings(inputs).low_entropy)


@register_mask("drop_destructive_q3")
def drop_destructive_q3(inputs: RewardInputs) -> Tensor:
    """All tokens but the Q3 tokens of correct rollouts (Capacity 5.3)."""
    correct, low_entropy = (
        required(inputs.correct, "drop_destructive_q3", KNOWS_CORRECTNESS),
        token_settings(inputs).low_entropy,
    )
    return masks.drop_destructive_q3(reverse_kl(inputs), inputs.student_entropy, correct, inputs.mask, low_entropy)


@register_mask("high_divergence")
def high_divergence(inputs: RewardInputs) -> Tensor:
    """Tokens with `|r_t|` at or above its quantile within the rollout (Unmasking 4.3)."""
    return masks.high_divergence(reverse_kl(inputs), inputs.mask, token_settings(inputs).divergence_quantile)


@register_mask("depth_window")
def depth_window(inputs: RewardInputs) -> Tensor:
    """Tokens at positions `first_position` to `last_position` of their response, both included."""
    first, last = token_settings(inputs).first_position, token_settings(inputs).last_position
    return masks.depth_window(inputs.position, inputs.mask, first, last)


@register_weight("correctness")
def correctness(inputs: RewardInputs) -> Tensor:
    """Weight `correct` for tokens of correct rollouts, `incorrect` for the others."""
    correct, tokens = required(inputs.correct, "correctness", KNOWS_CORRECTNESS), token_settings(inputs)
    return weights.correctness_weight(correct, inputs.mask, tokens.correct, tokens.incorrect)


@register_weight("depth_decay")
def depth_decay(inputs: RewardInputs) -> Tensor:
    """Weight `2^(-position / half_life)`."""
    return weights.depth_decay(inputs.position, inputs.mask, token_settings(inputs).half_life)
