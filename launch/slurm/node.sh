#!/usr/bin/env bash
# Ray on one node of a Slurm allocation; launch/slurm/opd.sbatch starts it on all of them:
#   srun ... bash launch/slurm/node.sh HEAD_IP
# It lives until its input ends, and takes with it the processes that it started, no others.
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

# Agent port: any free one. The usual one is taken where another Ray runs on the node, and Ray's Jobs API then fails.
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
  until answers "$OPD_RAY_PORT"; do # for as long as opd.sbatch waits, which ends us
    ((SECONDS < OPD_JOIN_S)) || fail "no answer from the head at $head_ip:$OPD_RAY_PORT within $OPD_JOIN_S s"
    sleep 1
  done
  ray+=(--address="$head_ip:$OPD_RAY_PORT")
fi

cat >/dev/null <&0 & # ends with our input
hold=$!
"${ray[@]}" >"$log" 2>&1 </dev/null &
daemon=$!
trap 'kill -TERM "$daemon" 2>/dev/null' TERM INT
while kill -0 "$daemon" 2>/dev/null && kill -0 "$hold" 2>/dev/null; do
  sleep 1 &
  wait $! || true
done
if kill -0 "$hold" 2>/dev/null; then # our input is open: Ray went by itself
  kill "$hold"
  tail -n 20 "$log" >&2
  fail "Ray ended; more in $OPD_RAY_TEMP/session_latest/logs of this node"
fi
kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true
