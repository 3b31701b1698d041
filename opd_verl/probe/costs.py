"""Mass and bytes of the teacher's top-k, and the teacher's accuracy when it continues the student's rollouts."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_verl.metrics.bootstrap import estimate, replicates
from opd_verl.metrics.ratio import of_rollouts, of_tokens
from opd_verl.probe.observe import padded
from opd_verl.probe.readings import PairReadings
from opd_verl.probe.record import Continuation, Mass
from opd_verl.sampling.read import MASS_KS
from opd_verl.teacher.score import TeacherScore
from opd_verl.teacher.wire import encode

TOKENS = 1000
"""Tokens of the sample answer whose bytes are counted."""


def masses(readings: PairReadings, mask: Tensor) -> list[Mass]:
    """Mean cumulative probability of the teacher's k most likely ids, and the bytes of such an answer (EOPD app. F)."""
    shares = padded(readings.teacher.column("masses", len(MASS_KS)))
    return [Mass(k, of_tokens(shares[..., place], mask).value, wire_bytes(k)) for place, k in enumerate(MASS_KS)]


def wire_bytes(k: int) -> int:
    """Bytes per response token of a sent answer with a top-k in float16, without the header."""

    def size(tokens: int) -> int:
        values = torch.zeros(tokens)
        ids = torch.zeros(tokens, k, dtype=torch.int32)
        score = TeacherScore(values, torch.ones(tokens, dtype=torch.bool), values, ids, ids.half())
        return len(encode(score, "key", 0))

    # An answer without tokens is the header alone.
    return round((size(TOKENS) - size(0)) / TOKENS)


def continuations(
    finished: Mapping[float, NDArray[np.bool_]], correct: Tensor, prompts: Tensor, drawn: Tensor
) -> list[Continuation]:
    """Accuracy of the teacher's ends after each share of the rollouts, and its excess over the student's own ends.

    Args:
        finished: for each share, whether the teacher's end of each rollout is correct, [B].
        correct: whether the rollout itself is correct, bool [B].
        prompts: [B] row of each rollout's prompt.
        drawn: how often each prompt is drawn in each replicate of the bootstrap.
    """
    continued = []
    for share, right in finished.items():
        teacher = torch.from_numpy(right).double()
        # The difference is taken rollout by rollout: both ends share a beginning, so the interval is paired.
        accuracy, advantage = (of_rollouts(scores).grouped(prompts) for scores in (teacher, teacher - correct.double()))
        below = (replicates(advantage, drawn) < 0).double().mean().item()
        continued.append(Continuation(share, estimate(accuracy, drawn), estimate(advantage, drawn), below))
    return continued
