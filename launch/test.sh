#!/usr/bin/env bash
# Style, types, unit tests, and the end-to-end tests on verl's real main_ppo:
#   bash launch/test.sh              everything
#   bash launch/test.sh tests/unit   any pytest arguments: only those tests
set -euo pipefail
[[ "${OPD_VENV:-/}" == /* ]] || export OPD_VENV="$PWD/$OPD_VENV"
cd "$(dirname "$0")/.."
bash launch/env.sh
bin="$(cd "${OPD_VENV:-.venv}" && pwd)/bin"
if [[ $# -gt 0 ]]; then exec "$bin/python" -m pytest "$@"; fi
"$bin/ruff" check .
"$bin/ruff" format --check .
find .ci/run launch recipes tests/unit/slurm/squeue tests/unit/slurm/scontrol -type f \
  \( -name '*.sh' -o -name '*.sbatch' -o ! -name '*.*' \) -exec "$bin/shellcheck" -x {} +
"$bin/basedpyright" --pythonpath "$bin/python"

# Both at once: most of an end-to-end test is the start of main_ppo, on one core. As nice as the workers that Ray starts.
log=$(mktemp)
OMP_NUM_THREADS=1 nice -n 15 "$bin/python" -m pytest tests/unit -n 2 --dist loadfile --no-loadscope-reorder \
  --durations=15 >"$log" 2>&1 &
unit=$!
trap 'kill "$unit" 2>/dev/null || true' EXIT
# test_eval.py (two minutes) has no room in CI's 45, test_nodes.py (eight) neither; test_pipeline.py evaluates too.
end_to_end=0
"$bin/python" -m pytest tests/e2e --ignore=tests/e2e/test_eval.py --ignore=tests/e2e/test_nodes.py --durations=15 ||
  end_to_end=$?
units=0
wait "$unit" || units=$?
cat "$log"
exit $((end_to_end > units ? end_to_end : units))
