#!/usr/bin/env bash
# GRPO with a rule-based math reward on one node with GPUs, on the stack of recipe=opd.
#   MODEL=Qwen/Qwen3-1.7B TRAIN=... VAL=... bash recipes/grpo/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

MODEL=${MODEL:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
VAL=${VAL:?parquet files with the test problems}
GPUS=${GPUS:-8}

python3 -m verl.trainer.main_ppo recipe=grpo \
    actor_rollout_ref.model.path="$MODEL" \
    data.train_files="$TRAIN" \
    data.val_files="$VAL" \
    trainer.n_gpus_per_node="$GPUS" \
    trainer.save_freq=20 \
    trainer.test_freq=20 \
    "$@"
