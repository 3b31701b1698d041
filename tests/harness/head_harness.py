"""A micro-batch with every field that any objective reads, and the loss with its LM head."""

from typing import Any

import pytest
import torch
from loss_harness import loss_of
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from opd_verl.config.opd import OpdConfig
from opd_verl.fused.head import LMHead
from opd_verl.fused.rows import HeadWeights
from opd_verl.objectives.names import Support
from opd_verl.schema import (
    GATE,
    JOINT_FIELDS,
    OPD_NUM_TOKENS,
    OPD_WEIGHTS,
    STUDENT_FIELDS,
    TEACHER_FIELDS,
    TEACHER_HIDDEN,
)
from opd_verl.training.update.head_requests import UpdateRequest

LENGTHS, H, V, LIMIT, K, F, TEACHER_H = [3, 1, 4], 6, 23, 19, 4, 2, 3

N = sum(LENGTHS)


@pytest.fixture
def micro_batch() -> Any:
    """A micro-batch with every field that any objective reads."""
    generator = torch.Generator().manual_seed(6)

    def rand(*width: int) -> Tensor:
        return -torch.rand(N, *width, generator=generator) - 0.5

    def ids(width: int) -> Tensor:
        return torch.stack([torch.randperm(LIMIT, generator=generator)[:width] for _ in range(N)]).int()

    flat = {
        "responses": torch.randint(LIMIT, (N,), generator=generator),
        "response_mask": torch.tensor([1, 1, 0, 1, 1, 1, 0, 1]),
        "old_log_probs": rand(),
        "teacher_log_probs": rand(),
        "teacher_entropy": -rand(),
        "advantages": rand(),
        GATE: torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0]),
        OPD_WEIGHTS: torch.tensor([1.0, 0, 0, 0.5, 2, 1, 0, 1]),
        TEACHER_HIDDEN: torch.randn(N, TEACHER_H, generator=generator),
    }
    for where, width in ((STUDENT_FIELDS, K), (TEACHER_FIELDS, K), (JOINT_FIELDS, 2 * K)):
        flat |= {where.ids: ids(width), where.log_q: rand(width) - 1.0, where.log_p_old: rand(width) - 1.0}
    flat[JOINT_FIELDS.ids][:, 2 * K - 1] = -1
    fields = {name: torch.nested.as_nested_tensor(list(value.split(LENGTHS)), layout=torch.jagged)
              for name, value in flat.items()}  # fmt: skip
    data = TensorDict(fields, batch_size=len(LENGTHS))
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=6, global_batch_size=3, **{OPD_NUM_TOKENS: 5})
    return data


def student() -> tuple[Tensor, HeadWeights]:
    """Hidden states [N, H] and a head of V rows, of which LIMIT are tokens; both carry gradients."""
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(N, H, generator=generator).requires_grad_()
    weight = torch.randn(V, H, generator=generator).requires_grad_()
    return hidden, HeadWeights(weight, None, LIMIT)


def teacher() -> LMHead:
    weight = torch.randn(LIMIT, TEACHER_H, generator=torch.Generator().manual_seed(9))
    return LMHead(weight, None, scale=1.0, softcap=None, temperature=1.0)


def make_update(data: Any, opd: OpdConfig, loss_mode: str, temperature: Tensor | None, **actor: Any) -> UpdateRequest:
    return UpdateRequest.of(
        loss_of(opd, loss_mode=loss_mode, **actor),
        data,
        temperature=temperature,
        with_entropy=bool(actor.get("entropy_coeff")),
        teacher_head=teacher() if opd.objective.support is Support.full else None,
        rows=3,
    )
