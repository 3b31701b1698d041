# shellcheck shell=bash
# The launchers source this file. `python` is then the Python of OPD_VENV if set, else of the activated environment,
# else of the checkout's .venv, else the first Python in PATH.
#   source launch/python.sh

venv=${OPD_VENV:-}
if [[ -z "$venv${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -x "${BASH_SOURCE[0]%/*}/../.venv/bin/python" ]]; then
  venv=$(cd "${BASH_SOURCE[0]%/*}/../.venv" && pwd)
fi
if [[ -n "$venv" && ! -x "$venv/bin/python" ]]; then
  echo "OPD_VENV=$venv has no bin/python; set it to the environment's folder, or unset it" >&2
  exit 2
fi
[[ -z "$venv" ]] || export PATH="$venv/bin:$PATH"
if ! python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("verl") and u.find_spec("opd_verl")))'; then
  printf '%s\n' "$(command -v python || echo 'no python on PATH'): verl and opd_verl are not installed there;" \
    "activate the environment that has them, or set OPD_VENV=/path/to/environment" >&2
  exit 2
fi
