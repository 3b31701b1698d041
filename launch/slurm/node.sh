#!/usr/bin/env bash
# Runs Ray on one node of a Slurm allocation; launch/slurm/opd.sbatch starts this script on every node:
#   srun ... bash launch/slurm/node.sh HEAD_IP
# It runs until its standard input closes, and then ends the processes that it started, no others.
set -euo pipefail

head_ip=$1
name=${SLURMD_NODENAME:-$(hostname)}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

fail() {
  printf "$name: %s\n" "$@" >&2
  exit 1
}
answers() { (exec 3<>"/dev/tcp/$head_ip/$1") 2>/dev/null; }

# verl refuses to start where Slurm names the GPUs twice, once for NVIDIA and once for AMD.
[[ -z "${CUDA_VISIBLE_DEVICES:-}" ]] || unset ROCR_VISIBLE_DEVICES
ulimit -Sn "$(ulimit -Hn)"

# Agent port 0: Ray takes a free port. The default is taken where another Ray runs on the node, and Ray's Jobs API fails.
ray=(ray start --block --disable-usage-stats --node-name="$name"
  --dashboard-agent-listen-port=0 --num-gpus="$OPD_GPUS_PER_NODE" --num-cpus="$OPD_CPUS_PER_NODE")
if [[ "$SLURM_NODEID" == 0 ]]; then
  for port in "$OPD_RAY_PORT" "$OPD_DASHBOARD_PORT"; do
    ! answers "$port" || fail "port $port of $head_ip is in use, by another Ray?" \
      "set OPD_RAY_PORT and OPD_DASHBOARD_PORT to free ones, or take whole nodes (sbatch --exclusive)"
  done
  ray+=(--head --node-ip-address="$head_ip" --port="$OPD_RAY_PORT" --temp-dir="$OPD_RAY_TEMP"
    --include-dashboard=true --dashboard-host="$head_ip" --dashboard-port="$OPD_DASHBOARD_PORT")
else
  until answers "$OPD_RAY_PORT"; do # no longer than opd.sbatch itself waits
    ((SECONDS < OPD_JOIN_S)) || fail "no answer from the head at $head_ip:$OPD_RAY_PORT within $OPD_JOIN_S s"
    sleep 1
  done
  ray+=(--address="$head_ip:$OPD_RAY_PORT")
fi

cat >/dev/null <&0 & # ends when standard input closes
hold=$!
"${ray[@]}" >"$log" 2>&1 </dev/null &
daemon=$!
trap 'kill -TERM "$daemon" 2>/dev/null' TERM INT
while kill -0 "$daemon" 2>/dev/null && kill -0 "$hold" 2>/dev/null; do
  sleep 1 &
  wait $! || true
done
if kill -0 "$hold" 2>/dev/null; then # standard input is still open: Ray ended by itself
  kill "$hold"
  tail -n 20 "$log" >&2
  fail "Ray ended; more in $OPD_RAY_TEMP/session_latest/logs of this node"
fi
kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true
