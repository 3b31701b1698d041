#!/usr/bin/env bash
# Style, types, unit tests, and the end-to-end tests on verl's real main_ppo:
#   bash launch/test.sh              everything
#   bash launch/test.sh tests/unit   any pytest arguments: only those tests
#   bash launch/test.sh tests/e2e -m by_hand      runs that CI has no room for: several nodes, the evaluation, ...
set -euo pipefail
[[ "${OPD_VENV:-/}" == /* ]] || export OPD_VENV="$PWD/$OPD_VENV"
cd "$(dirname "$0")/.."
bash launch/env.sh
bin="$(cd "${OPD_VENV:-.venv}" && pwd)/bin"
if [[ $# -gt 0 ]]; then exec "$bin/python" -m pytest "$@"; fi
took() { echo "== $1: $((SECONDS - began)) s"; began=$SECONDS; }  # each test's seconds: .durations/
began=0
took "environment"
"$bin/ruff" check .
"$bin/ruff" format --check .
find .ci/run launch recipes tests/unit/launch/slurm/squeue tests/unit/launch/slurm/scontrol -type f \
  \( -name '*.sh' -o -name '*.sbatch' -o ! -name '*.*' \) -exec "$bin/shellcheck" -x {} +
took "style"
"$bin/basedpyright" --pythonpath "$bin/python"
took "types"
OMP_NUM_THREADS=1 "$bin/python" -m pytest tests/unit -m "not by_hand" -n 2 --dist loadfile --no-loadscope-reorder --durations=15
took "unit tests"
# CI's 30 minutes have no room for all runs. The others: bash launch/test.sh tests/e2e tests/unit -m by_hand
"$bin/python" -m pytest tests/e2e -m 'not by_hand' --durations=15
took "end-to-end tests"
