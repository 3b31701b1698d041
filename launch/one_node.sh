#!/usr/bin/env bash
# Runs a recipe on one node: the planner says whether the run fits, then verl trains.
#   bash launch/one_node.sh recipe=opd cluster=1x8 opd.teacher.path=Qwen/Qwen3-8B [override=value ...]
#   STUDENT=Qwen/Qwen3-1.7B TRAIN=train.parquet VAL=test.parquet bash launch/one_node.sh recipe=grpo cluster=1x8
# The same command resumes from the last checkpoint. An override on the command line beats a variable below.
set -euo pipefail

# User-adjustable: empty leaves verl's or the recipe's own setting.
STUDENT=${STUDENT:-}                    # folder or hub name of the model to train
TEACHER=${TEACHER:-}                    # folder or hub name of the teacher, where the recipe has one
TRAIN=${TRAIN:-}                        # parquet files, in verl's format
VAL=${VAL:-}
CHECKPOINTS=${CHECKPOINTS:-}            # folder for the checkpoints
LOGGER=${LOGGER:-}                      # for example [console,wandb]
SAVE_FREQ=${SAVE_FREQ:-20}              # steps between checkpoints
TEST_FREQ=${TEST_FREQ:-20}                # steps between validations
OPD_PLAN=${OPD_PLAN:-1}                 # 0: start without asking the planner
DEVICE=${DEVICE:-h100}                  # the GPU that the planner counts with

here=$(dirname "$0")
# shellcheck source=launch/python.sh
source "$here/python.sh"

MODEL=(
  ${STUDENT:+actor_rollout_ref.model.path="$STUDENT"}
  ${TEACHER:+opd.teacher.path="$TEACHER"}
)
DATA=(
  ${TRAIN:+data.train_files="$TRAIN"}
  ${VAL:+data.val_files="$VAL"}
)
TRAINER=(
  trainer.save_freq="$SAVE_FREQ"
  trainer.test_freq="$TEST_FREQ"
  trainer.resume_mode=auto
  ${CHECKPOINTS:+trainer.default_local_dir="$CHECKPOINTS"}
  ${LOGGER:+trainer.logger="$LOGGER"}
)

run() {
  echo "+ ${*@Q}"
  "$@"
}
[[ "$OPD_PLAN" == 0 ]] || run python -m opd_verl.plan device="$DEVICE" "${MODEL[@]}" "${DATA[@]}" "${TRAINER[@]}" "$@"
run python -m verl.trainer.main_ppo "${MODEL[@]}" "${DATA[@]}" "${TRAINER[@]}" "$@"
