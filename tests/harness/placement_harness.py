"""Placement of pools by trying every assignment."""

from itertools import product


def brute_force(nodes: list[int], *pools: tuple[int, int]) -> bool:
    """Every assignment of the pools' (size, count) groups to nodes."""
    groups = [size for size, count in pools for _ in range(count)]
    for places in product(range(len(nodes)), repeat=len(groups)):
        load = [0] * len(nodes)
        for size, place in zip(groups, places, strict=True):
            load[place] += size
        if all(used <= free for used, free in zip(load, nodes, strict=True)):
            return True
    return False
