#!/usr/bin/env bash
# Cold start on one node with GPUs: sample the teacher, keep what is finished, fine-tune the student on it.
#   TRAIN=... bash recipes/cold_start/run_qwen3_fsdp.sh [override=value ...]
set -xeuo pipefail

TEACHER=${TEACHER:-Qwen/Qwen3-8B}
STUDENT=${STUDENT:-Qwen/Qwen3-1.7B}
TRAIN=${TRAIN:?parquet files with the prompts, in the format of verl}
ROLLOUTS=${ROLLOUTS:-rollouts.parquet}
SFT=${SFT:-sft.parquet}
GPUS=${GPUS:-8}

python3 -m opd_verl.data rollouts "$TRAIN" --model "$TEACHER" --n 1 --max-tokens 13312 --out "$ROLLOUTS" \
    --tensor-parallel-size "$GPUS"
python3 -m opd_verl.data sft "$ROLLOUTS" --only-finished --out "$SFT"
torchrun --standalone --nproc_per_node="$GPUS" -m verl.trainer.sft_trainer recipe=cold_start \
    model.path="$STUDENT" \
    data.train_files="$SFT" \
    trainer.n_gpus_per_node="$GPUS" \
    'checkpoint.save_contents=[model,optimizer,extra,hf_model]' \
    trainer.default_local_dir=checkpoints/cold_start \
    "$@"
