#!/usr/bin/env bash
# Knowledge distillation on one node of 8 GPUs: the teacher answers every prompt once, then the student learns from it.
#   TRAIN=... VAL=... RECIPE=gkd bash recipes/kd/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

export TEACHER=${TEACHER:-Qwen/Qwen3-8B}
export STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
export VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-kd}                    # or gkd
ROLLOUTS=${ROLLOUTS:-rollouts.parquet}  # the teacher's responses; sampled here unless they are there
CLUSTER=${CLUSTER:-1x8}
GPUS=${GPUS:-8}

python3 -m opd_verl.data rollouts "$TRAIN" --model "$TEACHER" --n 1 --max-tokens 3072 --out "$ROLLOUTS" \
    --tensor-parallel-size "$GPUS"
TRAIN=$ROLLOUTS bash "$(dirname "$0")/../../launch/one_node.sh" recipe="$RECIPE" cluster="$CLUSTER" "$@"
