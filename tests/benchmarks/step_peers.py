"""The student step of verl 0.9.1, TRL 1.16.0 and Liger 0.8.5; each package is imported when first used."""

from types import SimpleNamespace
from typing import cast

import torch
from step_inputs import Inputs, Outcome
from step_ours import Step, differentiated
from torch import Tensor


def verl_topk(inputs: Inputs, chunked: bool) -> Step:
    """Group A: verl's `compute_forward_kl_topk` on all logits in their own dtype, then the mean over tokens."""
    from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
    from verl.workers.config import DistillationConfig

    loss = SimpleNamespace(use_chunked_topk=chunked, log_prob_min_clamp=None)  # the two fields that verl reads here
    config = cast(DistillationConfig, SimpleNamespace(distillation_loss=loss))
    log_q, ids = (torch.nested.nested_tensor([x_TK], layout=torch.jagged) for x_TK in (inputs.log_q_TK, inputs.ids_TK))

    def step() -> Outcome:
        logits_TV = inputs.hidden_TH @ inputs.weight_VH.t()
        # verl annotates a tuple and returns a dict.
        outputs = cast(dict[str, Tensor], compute_forward_kl_topk(logits_TV[None], log_q, ids, config, "thd"))
        return differentiated(inputs, outputs["distillation_losses"].mean())

    return step


def trl_jsd(inputs: Inputs) -> Step:
    """Group B: `generalized_jsd_loss` on all logits of both sides. In TRL beta = 1 is KL(student || teacher)."""
    from trl.experimental.gkd import GKDTrainer  # type: ignore[import-not-found]  # an optional peer

    tokens = len(inputs.hidden_TH)

    def step() -> Outcome:
        teacher_TV = inputs.teacher_hidden_TH @ inputs.teacher_weight_VH.t()
        logits_TV = inputs.hidden_TH @ inputs.weight_VH.t()
        loss = GKDTrainer.generalized_jsd_loss(logits_TV[None], teacher_TV[None], beta=1, num_items_in_batch=tokens)
        return differentiated(inputs, loss)

    return step


def liger_jsd(inputs: Inputs, compiled: bool) -> Step:
    """Group B: `LigerFusedLinearJSDLoss` in its chunks of 1024 rows. In Liger beta = 1 is KL(student || teacher)."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]  # an optional peer

    torch.compiler.reset()
    layer = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=compiled)

    def step() -> Outcome:
        loss = layer(
            inputs.hidden_TH,
            inputs.weight_VH,
            inputs.teacher_hidden_TH,
            inputs.teacher_weight_VH,
            inputs.tokens_T,
        )
        return differentiated(inputs, loss)

    return step
