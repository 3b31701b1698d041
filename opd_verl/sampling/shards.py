"""The requests of a shard, their seeds, and the rows made of their responses. No engine is imported here.

prompts 0..63, n = 8     ->   512 requests   ->   64 rows of 8 responses
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from opd_verl.sampling.parts import ShardFolder
from opd_verl.sampling.settings import SamplingSettings

SHARD_SCHEMA = pa.schema(
    {
        "responses": pa.list_(pa.string()),
        "response_ids": pa.list_(pa.list_(pa.int32())),
        "response_tokens": pa.list_(pa.int64()),
        "finished": pa.list_(pa.bool_()),
    }
)
"""Columns of a sampled shard, a row per prompt, n entries each; `judging.JUDGED_SCHEMA` has the judge's columns."""
MAX_TOKENS = "max_tokens"
"""Optional column of the requests: limit of each prompt's response, tokens."""


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    prompt_ids: list[int]
    seed: int
    max_tokens: int | None = None
    """Most tokens of this response; None: `SamplingSettings.max_tokens`."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]
    """Sampled token ids, with the end-of-sequence token if it was sampled."""
    text: str
    """The ids decoded without special tokens, as verl's reward managers decode them."""
    finished: bool
    """Whether the response ended by itself and not at max_tokens."""


SampleFunction = Callable[[Sequence[Request]], Sequence[Response]]
"""Samples responses in the order of the requests; each response depends on its own request alone."""


def request_seed(seed: int, identity: str, sample: int) -> int:
    """Seed of one response: crc32 of run seed, prompt and sample number. No order, split or restart changes it."""
    return zlib.crc32(f"{seed}/{identity}/{sample}".encode())


def shard_ranges(prompts: int, size: int) -> list[range]:
    """The prompts of each shard."""
    return [range(first, min(first + size, prompts)) for first in range(0, prompts, size)]


def shard_requests(
    identities: Sequence[str], prompts: Sequence[list[int]], n: int, seed: int, limits: Sequence[int] | None = None
) -> list[Request]:
    """n requests per prompt, next to each other; limits: most response tokens for each prompt."""
    rows = zip(identities, prompts, limits or [None] * len(prompts), strict=True)
    return [Request(ids, request_seed(seed, name, number), most) for name, ids, most in rows for number in range(n)]


def shard_table(responses: Sequence[Response], n: int) -> pa.Table:
    """Rows of `SHARD_SCHEMA` from the responses; each n responses in a row belong to one prompt."""
    groups = [responses[first : first + n] for first in range(0, len(responses), n)]
    columns = {
        "responses": [[response.text for response in group] for group in groups],
        "response_ids": [[response.ids for response in group] for group in groups],
        "response_tokens": [[len(response.ids) for response in group] for group in groups],
        "finished": [[response.finished for response in group] for group in groups],
    }
    return pa.table(columns, schema=SHARD_SCHEMA)


def fill(parts: ShardFolder, requests: pa.Table, settings: SamplingSettings, sample: SampleFunction) -> None:
    """Samples and saves every missing shard.

    requests: columns `identity` (string) and `prompt_ids` (list of int32), a row per prompt; `max_tokens` (int32) too
    if the limit differs between prompts.
    """
    ranges = shard_ranges(len(requests), settings.prompts_per_shard)
    assert parts.count == len(ranges)
    for index in parts.missing():
        prompts = requests.slice(ranges[index].start, len(ranges[index])).to_pydict()
        limits = prompts.get(MAX_TOKENS)
        batch = shard_requests(prompts["identity"], prompts["prompt_ids"], settings.n, settings.seed, limits)
        parts.write(index, shard_table(sample(batch), settings.n))
