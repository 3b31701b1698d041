"""Waits until every node of the allocation has joined Ray; launch/slurm/opd.sbatch runs it on the first node.

python -m launch.slurm.wait_nodes --address http://10.0.0.1:8265 --seconds 300 node1 node2
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from ray.util.state import list_nodes


class NamedNode(Protocol):
    """The part of Ray's NodeState that is read here; Ray's own class hides its fields from type checkers."""

    node_name: str


def joined(address: str) -> set[str]:
    """Returns the names of the nodes that Ray counts as alive; none while the dashboard does not answer."""
    try:
        alive = list_nodes(address, filters=[("state", "=", "ALIVE")], limit=10_000, timeout=10)
    except Exception:  # the dashboard starts last, and until then a request fails in many ways
        return set()
    return {node.node_name for node in cast(list[NamedNode], alive)}


def wait_for(names: Sequence[str], present: Callable[[], set[str]], seconds: float) -> list[str]:
    """Waits until all nodes have joined or the time is up. Returns the missing nodes."""
    deadline = time.monotonic() + seconds
    while True:
        there = present()
        missing = [name for name in names if name not in there]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(1)


def main() -> None:
    """Exits with 0 when all nodes have joined, or with 1 and the missing names when the time is up."""
    parser = argparse.ArgumentParser(description="waits until every node has joined the Ray cluster")
    parser.add_argument("--address", required=True, help="address of the dashboard: http://HEAD:8265")
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    parser.add_argument("names", nargs="+", help="Slurm's names of the nodes")
    options = parser.parse_args()
    started = time.monotonic()
    missing = wait_for(options.names, lambda: joined(options.address), options.seconds)
    if missing:
        there = len(options.names) - len(missing)
        sys.exit(
            f"{there} of {len(options.names)} nodes joined Ray at {options.address} within {options.seconds:g} s; "
            f"missing: {' '.join(missing)}. Their messages are above; OPD_JOIN_S=... waits longer, "
            "sbatch --exclude=... leaves these nodes out"
        )
    print(f"{len(options.names)} nodes joined in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
