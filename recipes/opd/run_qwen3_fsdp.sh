#!/usr/bin/env bash
# On-policy distillation on one node with GPUs: the last TEACHER_GPUS score, the others train and sample.
#   TEACHER=Qwen/Qwen3-8B STUDENT=Qwen/Qwen3-1.7B TRAIN=... VAL=... bash recipes/opd/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

TEACHER=${TEACHER:-Qwen/Qwen3-8B}
STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-opd}                   # or opd_topk, opd_full, eopd, opd_grpo
TRAIN_GPUS=${TRAIN_GPUS:-6}
TEACHER_GPUS=${TEACHER_GPUS:-2}

python3 -m verl.trainer.main_ppo recipe="$RECIPE" \
    opd.teacher.path="$TEACHER" \
    opd.teacher.n_gpus_per_node="$TEACHER_GPUS" \
    actor_rollout_ref.model.path="$STUDENT" \
    data.train_files="$TRAIN" \
    data.val_files="$VAL" \
    trainer.n_gpus_per_node="$TRAIN_GPUS" \
    trainer.save_freq=20 \
    trainer.test_freq=20 \
    "$@"
