"""Batch sizes, token budgets and data files that verl would refuse minutes later."""

import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pyarrow.parquet import read_schema

from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig
from opd_verl.config.overrides import strings


def check_mini_batch(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """Every rank of the trainer must get equally many rollouts; verl's workers assert it minutes later."""
    key, rollouts = "actor_rollout_ref.actor.ppo_mini_batch_size", config.actor_rollout_ref.rollout.n
    prompts, devices = config.actor_rollout_ref.actor.ppo_mini_batch_size, config.trainer.n_gpus_per_node
    ranks = config.trainer.nnodes * devices
    if prompts * rollouts % ranks:
        problem = f"its {prompts * rollouts} rollouts are not a multiple of the trainer's {ranks} devices"
        # The smallest number of prompts whose rollouts divide among the ranks; the remedy is its nearest multiple.
        fitting = ranks // math.gcd(ranks, rollouts)
        remedy = f"{key}={max(round(prompts / fitting), 1) * fitting}, or a trainer of other size"
        raise ConfigError(key, prompts, problem, remedy)


def check_token_budget(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """A micro-batch must hold the longest sequence; verl asserts it when the first longer sequence comes."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    budgets = {
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu),
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        ),
    }
    for key, (read, budget) in budgets.items():
        if read and budget < longest:
            problem = f"a sequence may have {longest} tokens (data.max_prompt_length + data.max_response_length)"
            raise ConfigError(key, budget, problem, f"{key}={longest}")


def check_data(config: DictConfig, opd: OpdConfig | None = None) -> None:
    """The data files must be there."""
    for key in ("data.train_files", "data.val_files"):
        for file in strings(OmegaConf.select(config, key)) or [None]:
            if not file or ("://" not in file and not Path(file).expanduser().exists()):
                raise ConfigError(key, file, "no such file", f"{key}=/path/to/prompts.parquet")
            if file.endswith(".parquet") and "://" not in file:
                check_columns(key, Path(file).expanduser(), config.data.prompt_key)


def check_columns(key: str, file: Path, prompt_key: str) -> None:
    """A data file must have the columns that verl reads: its reward manager reads the ground truth of every sample."""
    names = set(read_schema(file).names)
    for column in (prompt_key, "data_source", "reward_model"):
        if column not in names:
            remedy = "add it; without answers use reward_model={'style': 'rule', 'ground_truth': ''}"
            raise ConfigError(key, str(file), f"no column {column!r} (there are: {', '.join(sorted(names))})", remedy)
