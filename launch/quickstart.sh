#!/usr/bin/env bash
# From nothing to a distilled model, a table and a picture, on a laptop:
#   bash launch/quickstart.sh [--seed 0] [--steps 60] [--recipe opd_topk|opd|grpo] [any.hydra.override=value ...]
set -euo pipefail
[[ "${OPD_VENV:-/}" == /* ]] || export OPD_VENV="$PWD/$OPD_VENV"
cd "$(dirname "$0")/.."
bash launch/env.sh
exec "${OPD_VENV:-.venv}/bin/python" -W ignore -m opd_verl.quickstart "$@"
