"""The loss object as the trainer makes it."""

from typing import Any

from omegaconf import OmegaConf

import opd_verl.training.update.policy_loss  # noqa: F401  (registers)
from opd_verl.config.opd import OpdConfig
from opd_verl.training.update.actor_loss import OpdLoss
from opd_verl.training.update.make_loss import make_loss

LENGTHS, PROMPT, SCALE = [3, 1, 4, 2, 5, 2], 2, 10

EPS_LOW, EPS_HIGH = 0.2, 0.3


def loss_of(opd: OpdConfig, mode: str = "token-mean", loss_mode: str = "opd", **actor: Any) -> OpdLoss:
    """The loss as the trainer makes it."""
    section = {
        "_target_": "verl.workers.config.FSDPActorConfig",
        "strategy": "fsdp2",
        "rollout_n": 1,
        "ppo_micro_batch_size_per_gpu": 1,
        "clip_ratio_low": EPS_LOW,
        "clip_ratio_high": EPS_HIGH,
        "policy_loss": {"_target_": "verl.workers.config.PolicyLossConfig", "loss_mode": loss_mode},
        "loss_agg_mode": mode,
        "loss_scale_factor": SCALE,
        "entropy_coeff": 0.0,
    }
    return make_loss(OmegaConf.create(section | actor), opd)
