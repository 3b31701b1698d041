"""Flat fields of six tokens, and the terms of the loss on them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opd_verl.objectives.names import Divergence, Support, Tail
from opd_verl.schema import GATE, JOINT_FIELDS, STUDENT_FIELDS, TEACHER_FIELDS
from opd_verl.training.update.terms import DivergenceObjective, Terms

N, V, STORED, K, F = 6, 11, 4, 3, 2


def make_terms(support: Support, forward_kl_k: int = 0, **changes: Any) -> Terms:
    """Terms with the renormalised reverse KL on the support; the sampled token has none."""
    objective = None if support is Support.sampled else DivergenceObjective(Divergence.reverse, Tail.renorm, 0.5)
    numbers: dict[str, Any] = {"coefficient": 1.0, "forward_kl_coefficient": 1.0, "eps_low": 0.2, "eps_high": 0.28}
    return Terms(
        **{"support": support, "k": K, "objective": objective, "forward_kl_k": forward_kl_k} | numbers | changes
    )


def log_probs(seed: int) -> Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


@pytest.fixture
def p() -> Tensor:
    return log_probs(0)


@pytest.fixture
def data() -> dict[str, Tensor]:
    """Flat fields of N tokens; every block holds more ids than K, and the joint one has holes."""
    generator = torch.Generator().manual_seed(5)
    q, old = log_probs(1), log_probs(2)

    def block(width: int) -> Tensor:
        return torch.stack([torch.randperm(V, generator=generator)[:width] for _ in range(N)]).int()

    data = {
        "responses": torch.randint(V, (N,), generator=generator),
        "old_log_probs": old[:, 0],
        "teacher_log_probs": q[:, 0],
        "advantages": torch.randn(N, generator=generator),
        "teacher_entropy": -(q.exp() * q).sum(-1),
        GATE: torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
    }
    for where, width in ((STUDENT_FIELDS, STORED), (TEACHER_FIELDS, STORED + 1), (JOINT_FIELDS, 2 * K)):
        ids = block(width)
        data |= {where.ids: ids, where.log_q: q.gather(-1, ids.long()), where.log_p_old: old.gather(-1, ids.long())}
    data[JOINT_FIELDS.ids][0, 1:], data[JOINT_FIELDS.ids][1, :] = -1, -1
    return data
