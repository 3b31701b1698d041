"""Seeds and shards: the same responses whatever the order of the prompts, the shards, or the restarts."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_harness import answers

from opd_verl.sampling.parts import ShardFolder
from opd_verl.sampling.settings import SamplingSettings
from opd_verl.sampling.shards import SHARD_SCHEMA, Request, Response, fill, request_seed, shard_ranges, shard_requests

NAMES = [f"p{index}" for index in range(7)]
REQUESTS = pa.table({"identity": NAMES, "prompt_ids": [[index] for index in range(7)]})


@given(st.integers(0, 300), st.integers(1, 70))
def test_shards_cover_every_prompt_once(prompts: int, size: int) -> None:
    ranges = shard_ranges(prompts, size)
    assert [index for part in ranges for index in part] == list(range(prompts))
    assert all(0 < len(part) <= size for part in ranges)


def test_a_seed_is_the_crc_of_run_prompt_and_sample() -> None:
    assert request_seed(3, "abc.0", 2) == zlib.crc32(b"3/abc.0/2")
    seeds = {request.seed for request in shard_requests(NAMES, [[1]] * 7, 50, seed=0)}
    assert len(seeds) == 350
    assert not seeds & {request.seed for request in shard_requests(NAMES, [[1]] * 7, 50, seed=1)}


def test_the_requests_of_a_prompt_are_next_to_each_other() -> None:
    requests = shard_requests(NAMES[:2], [[4], [5, 6]], 3, seed=0)
    assert [request.prompt_ids for request in requests] == [[4]] * 3 + [[5, 6]] * 3


def filled(folder: Path, requests: pa.Table, size: int) -> dict[str, list[list[int]]]:
    parts = ShardFolder(folder, len(shard_ranges(len(requests), size)))
    fill(parts, requests, SamplingSettings(n=3, prompts_per_shard=size), answers)
    tables = [parts.read(index) for index in range(parts.count)]
    assert all(table.schema == SHARD_SCHEMA for table in tables)
    return dict(
        zip(requests["identity"].to_pylist(), pa.concat_tables(tables)["response_ids"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_shard_size_and_order_do_not_matter(tmp_path: Path, size: int) -> None:
    whole = filled(tmp_path / "whole", REQUESTS, 7)
    assert filled(tmp_path / "split", REQUESTS, size) == whole
    assert filled(tmp_path / "order", REQUESTS.take([3, 0, 6, 1, 2, 5, 4]), size) == whole
    assert filled(tmp_path / "fewer", REQUESTS.slice(2, 3), size) == {name: whole[name] for name in NAMES[2:5]}


def test_only_what_is_missing_is_sampled(tmp_path: Path) -> None:
    parts, asked = ShardFolder(tmp_path, 4), []

    def sample(requests: Sequence[Request]) -> list[Response]:
        asked.append([request.prompt_ids[0] for request in requests])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(requests)

    settings = SamplingSettings(prompts_per_shard=2)
    with pytest.raises(KeyboardInterrupt):
        fill(parts, REQUESTS, settings, sample)
    assert parts.missing() == [2, 3]
    fill(parts, REQUESTS, settings, sample)
    assert asked == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
