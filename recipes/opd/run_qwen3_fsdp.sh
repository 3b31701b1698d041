#!/usr/bin/env bash
# On-policy distillation on one node with GPUs: the last TEACHER_GPUS score, the others train and sample.
#   TEACHER=Qwen/Qwen3-8B STUDENT=Qwen/Qwen3-1.7B TRAIN=... VAL=... bash recipes/opd/run_qwen3_fsdp.sh [override=value ...]
set -euo pipefail

export TEACHER=${TEACHER:-Qwen/Qwen3-8B}
export STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
export TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
export VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-opd}                   # or opd_topk, opd_full, eopd, opd_grpo
TRAIN_GPUS=${TRAIN_GPUS:-6}
TEACHER_GPUS=${TEACHER_GPUS:-2}

bash "$(dirname "$0")/../../launch/one_node.sh" recipe="$RECIPE" \
    opd.teacher.n_gpus_per_node="$TEACHER_GPUS" \
    trainer.n_gpus_per_node="$TRAIN_GPUS" \
    "$@"
