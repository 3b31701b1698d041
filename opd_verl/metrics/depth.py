"""Means by depth, the position of a token in its response (Rethinking: reward quality falls with depth).

Shapes: B rollouts, R response tokens.
"""

from itertools import pairwise

from torch import Tensor

from opd_verl.metrics.ratio import Ratio, of_tokens

BUCKETS = 8
"""Number of ranges of positions in commands without a setting for it."""


def depth_buckets(limit: int, count: int = BUCKETS) -> list[range]:
    """`count` ranges of nearly equal length that cover the positions 0 .. limit - 1; fewer for a short limit."""
    count = min(count, limit)
    edges = [limit * index // count for index in range(count + 1)]
    return [range(first, end) for first, end in pairwise(edges)]


def by_depth(values: Tensor, mask: Tensor, buckets: list[range]) -> dict[range, Ratio]:
    """Mean of values [B, R] over the pooled tokens of each bucket."""
    columns = {bucket: slice(bucket.start, bucket.stop) for bucket in buckets}
    return {bucket: of_tokens(values[:, part], mask[:, part]) for bucket, part in columns.items()}
