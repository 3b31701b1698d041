# shellcheck shell=bash
# Sourced by the launchers: `python` becomes that of OPD_VENV if set, else of the activated environment, else of the
# checkout's .venv, else what PATH has.
#   source launch/python.sh            in the checkout's root

if [[ -n "${OPD_VENV:-}" ]]; then
  venv=$OPD_VENV
elif [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -x .venv/bin/python ]]; then
  venv=$PWD/.venv
fi
if [[ -n "${venv:-}" && ! -x "$venv/bin/python" ]]; then
  echo "OPD_VENV=$venv has no bin/python; set it to a virtual environment that all nodes see, or unset it" >&2
  exit 2
fi
[[ -z "${venv:-}" ]] || export PATH="$venv/bin:$PATH"
if ! python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("verl") and u.find_spec("opd_verl")))'; then
  printf '%s\n' "$(command -v python || echo 'no python on PATH'): verl and opd_verl are not installed there;" \
    "activate the environment that has them, or set OPD_VENV=/path/to/environment" >&2
  exit 2
fi
