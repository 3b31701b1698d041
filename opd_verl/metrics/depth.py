"""What depends on how deep in the response a token is (Rethinking: reward quality falls with depth).

Shapes: B rollouts, R response tokens.
"""

from itertools import pairwise

from torch import Tensor

from opd_verl.metrics.ratio import Ratio, of_tokens

BUCKETS = 8


def depth_buckets(limit: int, count: int = BUCKETS) -> list[range]:
    """`count` ranges of positions of nearly equal length that together are 0 .. limit - 1; fewer for a short limit."""
    count = min(count, limit)
    edges = [limit * index // count for index in range(count + 1)]
    return [range(first, end) for first, end in pairwise(edges)]


def by_depth(values: Tensor, mask: Tensor, buckets: list[range]) -> dict[range, Ratio]:
    """Mean of values [B, R] over the pooled tokens of every bucket."""
    columns = {bucket: slice(bucket.start, bucket.stop) for bucket in buckets}
    return {bucket: of_tokens(values[:, part], mask[:, part]) for bucket, part in columns.items()}
