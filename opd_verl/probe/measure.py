"""All measurements of one pair, with 95% bootstrap intervals over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_verl.eval.entropies import summarise
from opd_verl.metrics.auroc import auroc, weighted_auroc
from opd_verl.metrics.bootstrap import estimate, replicates, with_interval
from opd_verl.metrics.depth import by_depth, depth_buckets
from opd_verl.metrics.estimate import Estimate
from opd_verl.metrics.measurements import Observed, measurements
from opd_verl.metrics.ratio import Ratio, of_rollouts, of_tokens
from opd_verl.probe.record import Depth
from opd_verl.probe.verdict import THRESHOLDS


@dataclass(frozen=True)
class MeasuredValue:
    """One measurement of a pair."""

    estimate: Estimate
    rollouts: int
    """Number of rollouts behind the estimate; for an accuracy the number of prompts."""


@dataclass(frozen=True)
class Accuracies:
    """Share of correct responses of each prompt [P], on the same prompts."""

    student: NDArray[np.float64]
    teacher: NDArray[np.float64] | None


@dataclass(frozen=True)
class PairMeasurements:
    """All measurements of a pair on its rollouts, except continuations and masses."""

    values: dict[str, MeasuredValue]
    above: dict[str, float]
    """Share of the bootstrap's replicates above the threshold, for the measurements in THRESHOLDS that are defined."""
    depth: list[Depth]
    student_histogram: list[int]
    """Tokens per bin of entropy, in both histograms."""
    teacher_histogram: list[int]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The values without their numbers of rollouts."""
        return {name: value.estimate for name, value in self.values.items()}


def measure(
    seen: Observed, prompts: Tensor, lengths: Tensor, accuracies: Accuracies, drawn: Tensor, low_entropy: float
) -> PairMeasurements:
    """Takes all measurements except the continuations and masses.

    Args:
        prompts: [B] row of each rollout's prompt; the rollouts of a prompt are drawn together.
        lengths: [B] response tokens, also those without finite values.
        drawn: how often each prompt is drawn in each replicate of the bootstrap.
        low_entropy: student entropy below which a token counts as committed, nats.
    """
    assert seen.teacher_entropy is not None
    of_rollout = measurements(seen, low_entropy) | {"end_reward": end_reward(seen, lengths)}
    of_rollout["missing_share"] = Ratio((lengths - seen.mask.sum(-1)).double(), lengths.double())
    of_rollout["response_length"] = of_rollouts(lengths.double())
    of_prompt = accuracy_ratios(accuracies)
    # Rollouts of one prompt are alike, so prompts are the units of the bootstrap; accuracies are per prompt already.
    grouped = {name: ratio.grouped(prompts) for name, ratio in of_rollout.items()} | of_prompt
    taking_part = {name: ratio.rollouts for name, ratio in (of_rollout | of_prompt).items()}
    values = {name: MeasuredValue(estimate(ratio, drawn), taking_part[name]) for name, ratio in grouped.items()}
    values["reward_auroc"] = reward_auroc(seen, drawn[:, prompts])
    return PairMeasurements(
        values=values,
        above=shares_above(grouped, drawn),
        depth=depth(seen, prompts, drawn),
        student_histogram=histogram(seen.student_entropy, seen.mask),
        teacher_histogram=histogram(seen.teacher_entropy, seen.mask),
    )


def accuracy_ratios(accuracies: Accuracies) -> dict[str, Ratio]:
    """Accuracies and headroom, prompt by prompt."""
    student = torch.from_numpy(accuracies.student)
    ratios = {"student_accuracy": of_rollouts(student)}
    if accuracies.teacher is not None:
        teacher = torch.from_numpy(accuracies.teacher)
        ratios |= {"teacher_accuracy": of_rollouts(teacher), "headroom": of_rollouts(teacher - student)}
    return ratios


def end_reward(seen: Observed, lengths: Tensor) -> Ratio:
    """Mean r_t of the last token of the finished rollouts: whether the teacher would end there too."""
    assert seen.truncated is not None
    position = torch.arange(seen.mask.shape[1])
    last = (position == lengths[:, None] - 1) & ~seen.truncated[:, None]
    return of_tokens(seen.reward, last & seen.mask.bool())


def reward_auroc(seen: Observed, weights: Tensor) -> MeasuredValue:
    """AUROC of the summed r_t; weights: how often each rollout is drawn [S, B]."""
    assert seen.correct is not None
    scores = (seen.reward.double() * seen.mask).sum(-1)
    # An AUROC is no ratio of sums over rollouts, so every replicate computes it anew with its weights.
    drawn_values = weighted_auroc(scores, seen.correct, weights)
    value = auroc(scores, seen.correct)
    # A replicate that drew only correct or only incorrect rollouts has no AUROC.
    interval = with_interval(value, drawn_values[~drawn_values.isnan()])
    return MeasuredValue(interval, len(scores) if value == value else 0)


def shares_above(ratios: Mapping[str, Ratio], drawn: Tensor) -> dict[str, float]:
    """Share of the replicates above the threshold: how sure each comparison with a threshold is."""
    drawn_values = {name: replicates(ratios[name], drawn) for name in THRESHOLDS if name in ratios}
    return {
        name: (values > THRESHOLDS[name]).double().mean().item() for name, values in drawn_values.items() if len(values)
    }


def depth(seen: Observed, prompts: Tensor, drawn: Tensor) -> list[Depth]:
    """Mean r_t by depth, as deep as the longest rollout."""
    ratios = by_depth(seen.reward, seen.mask, depth_buckets(seen.mask.shape[1]))
    return [
        Depth(bucket.start, bucket.stop - 1, estimate(ratio.grouped(prompts), drawn), int(ratio.denominator.sum()))
        for bucket, ratio in ratios.items()
    ]


def histogram(entropy: Tensor, mask: Tensor) -> list[int]:
    """Tokens per bin of entropy, as the evaluation counts them."""
    return summarise([entropy[mask.bool()].numpy()]).counts
