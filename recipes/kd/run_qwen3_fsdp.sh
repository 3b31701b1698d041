#!/usr/bin/env bash
# Knowledge distillation on one node with GPUs: the teacher answers every prompt once, then the student learns from it.
#   TRAIN=... VAL=... RECIPE=gkd bash recipes/kd/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

TEACHER=${TEACHER:-Qwen/Qwen3-8B}
STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
VAL=${VAL:?parquet files with the test problems}
RECIPE=${RECIPE:-kd}                    # or gkd
ROLLOUTS=${ROLLOUTS:-rollouts.parquet}  # the teacher's responses; sampled here unless they are there
TRAIN_GPUS=${TRAIN_GPUS:-6}
TEACHER_GPUS=${TEACHER_GPUS:-2}

python3 -m opd_verl.data rollouts "$TRAIN" --model "$TEACHER" --n 1 --max-tokens 3072 --out "$ROLLOUTS" \
    --tensor-parallel-size "$((TRAIN_GPUS + TEACHER_GPUS))"
python3 -m verl.trainer.main_ppo recipe="$RECIPE" \
    opd.teacher.path="$TEACHER" \
    opd.teacher.n_gpus_per_node="$TEACHER_GPUS" \
    actor_rollout_ref.model.path="$STUDENT" \
    data.train_files="$ROLLOUTS" \
    data.val_files="$VAL" \
    trainer.n_gpus_per_node="$TRAIN_GPUS" \
    trainer.save_freq=20 \
    trainer.test_freq=20 \
    "$@"
