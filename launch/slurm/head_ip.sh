#!/usr/bin/env bash
# Prints an IPv4 address at which the other nodes reach this node:
#   srun ... bash launch/slurm/head_ip.sh "$SLURMD_NODENAME"
# A name may resolve to IPv6 first, or on its own node to 127.0.1.1 (Debian's /etc/hosts): Ray can use neither.
set -euo pipefail

for address in $(getent ahostsv4 "$1" | cut -d' ' -f1) $(hostname -I); do
  if [[ "$address" =~ ^[0-9]+(\.[0-9]+){3}$ && "$address" != 127.* ]]; then
    echo "$address"
    exit
  fi
done
printf '%s\n' "$1 has no IPv4 address but its loopback; set OPD_HEAD_IP to an address that the other nodes reach" >&2
exit 1
