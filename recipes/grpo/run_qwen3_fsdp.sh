#!/usr/bin/env bash
# GRPO with a rule-based math reward on one node of 8 GPUs, on the stack of recipe=opd.
#   MODEL=Qwen/Qwen3-1.7B TRAIN=... VAL=... bash recipes/grpo/run_qwen3_fsdp.sh [override=value ...]
set -euo pipefail

export STUDENT=${MODEL:-Qwen/Qwen3-1.7B}
export TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
export VAL=${VAL:?parquet files with the test problems}
CLUSTER=${CLUSTER:-1x8}

bash "$(dirname "$0")/../../launch/one_node.sh" recipe=grpo cluster="$CLUSTER" "$@"
