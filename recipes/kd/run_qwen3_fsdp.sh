#!/usr/bin/env bash
# Knowledge distillation on one node with GPUs: the teacher answers every prompt once, then the student learns from it.
#   TRAIN=... VAL=... RECIPE=gkd bash recipes/kd/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

export TEACHER=${TEACHER:-Qwen/Qwen3-8B}
export STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
export VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-kd}                    # or gkd
ROLLOUTS=${ROLLOUTS:-rollouts.parquet}  # the teacher's responses; sampled here unless they are there
TRAIN_GPUS=${TRAIN_GPUS:-6}
TEACHER_GPUS=${TEACHER_GPUS:-2}

python3 -m opd_verl.data rollouts "$TRAIN" --model "$TEACHER" --n 1 --max-tokens 3072 --out "$ROLLOUTS" \
    --tensor-parallel-size "$((TRAIN_GPUS + TEACHER_GPUS))"
TRAIN=$ROLLOUTS bash "$(dirname "$0")/../../launch/one_node.sh" recipe="$RECIPE" \
    opd.teacher.n_gpus_per_node="$TEACHER_GPUS" \
    trainer.n_gpus_per_node="$TRAIN_GPUS" \
    "$@"
