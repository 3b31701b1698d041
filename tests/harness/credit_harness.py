"""Twelve rollouts of three prompts, and the advantage step on them."""

from typing import Any

import torch
from omegaconf import OmegaConf

import opd_verl.training.advantage_estimator  # noqa: F401  (registers)
from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ObjectiveConfig, TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.objectives.names import Support
from opd_verl.training.advantage_step import Credit, TaskRewards, credit

PROMPTS, ROLLOUTS, WIDTH = 3, 4, 6

ROWS = PROMPTS * ROLLOUTS

ALGORITHM: dict[str, Any] = {"adv_estimator": "opd", "gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": True}

EXACT = ObjectiveConfig(support=Support.union, k=4)


def verl_config(**algorithm: Any) -> Any:
    return OmegaConf.create({"algorithm": ALGORITHM | algorithm, "actor_rollout_ref": {"rollout": {"n": ROLLOUTS}}})


def make_inputs(tokens: TokenConfig | None = None, truncated: Any = None) -> RewardInputs:
    """Twelve rollouts of three prompts; lengths differ, and some tokens are masked."""
    generator = torch.Generator().manual_seed(4)
    mask = (torch.arange(WIDTH) < torch.randint(2, WIDTH + 1, (ROWS, 1), generator=generator)).long()
    mask[3, 0] = 0
    score = torch.randint(0, 3, (ROWS,), generator=generator).float() - 0.5
    return RewardInputs(
        log_p_old=-3 * torch.rand(ROWS, WIDTH, generator=generator),
        log_q=-3 * torch.rand(ROWS, WIDTH, generator=generator),
        mask=mask,
        student_entropy=torch.rand(ROWS, WIDTH, generator=generator),
        teacher_entropy=2 * torch.rand(ROWS, WIDTH, generator=generator),
        task_score=score,
        correct=score > 0,
        truncated=torch.zeros(ROWS, dtype=torch.bool) if truncated is None else truncated,
        tokens=tokens or TokenConfig(),
    )


def make_rollouts(inputs: RewardInputs) -> TaskRewards:
    keys = [f"{row // ROLLOUTS:03d}_{row % ROLLOUTS}_0" for row in range(ROWS)]
    task = torch.zeros(ROWS, WIDTH)
    task[:, 1] = inputs.task_score
    return TaskRewards(keys, [key.split("_")[0] for key in keys], task)


def run(opd: OpdConfig, inputs: RewardInputs, config: Any = None, seed: int = 0) -> Credit:
    return credit(inputs, make_rollouts(inputs), opd, config or verl_config(), seed)
