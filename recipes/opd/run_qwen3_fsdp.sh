#!/usr/bin/env bash
# On-policy distillation on one node of 8 GPUs; CLUSTER=1x1 for one GPU.
#   TEACHER=Qwen/Qwen3-8B STUDENT=Qwen/Qwen3-1.7B TRAIN=... VAL=... bash recipes/opd/run_qwen3_fsdp.sh [override=value ...]
set -euo pipefail

export TEACHER=${TEACHER:-Qwen/Qwen3-8B}
export STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
export TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
export VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-opd}                   # or opd_topk, opd_full, eopd, opd_grpo
CLUSTER=${CLUSTER:-1x8}

bash "$(dirname "$0")/../../launch/one_node.sh" recipe="$RECIPE" cluster="$CLUSTER" "$@"
