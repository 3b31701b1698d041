"""Tokens a second of an alignment's targeted rollouts against its initial ones, with and without prefix caching.

    python -m opd_verl.experiments.alignment_throughput runs/alignment

Samples the first shards of both kinds again, as they were ordered, with the engine loaded: first to warm up, then
`--repeats` times in turn. Prompt tokens are those that a pass without cache has to read.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from opd_verl.sampling.generate import REQUESTS
from opd_verl.sampling.settings import EngineSettings, SamplingSettings
from opd_verl.sampling.shards import MAX_TOKENS, Request, shard_requests
from opd_verl.utils.markdown import markdown_table

HEADS = ("rollouts", "prefix caching", "rollouts sampled", "prompt tokens", "sampled tokens", "sampled tokens/s")


def requests(parts: Path, count: int) -> tuple[list[Request], dict[str, Any]]:
    """The first requests of a rollouts file's parts, and the settings that they were sampled with."""
    sampled = json.loads((parts / "settings.json").read_text())
    table = pq.read_table(parts / REQUESTS).slice(0, count).to_pydict()
    settings = SamplingSettings(**sampled["settings"])
    limits = table.get(MAX_TOKENS)
    return shard_requests(table["identity"], table["prompt_ids"], settings.n, settings.seed, limits)[:count], sampled


def measure(
    model: str, kinds: Mapping[str, Sequence[Request]], settings: SamplingSettings, caching: bool, repeats: int
) -> list[list[str]]:
    """A row for each kind."""
    from opd_verl.sampling.vllm_engine import VllmEngine

    every = [one for asked in kinds.values() for one in asked]
    longest = max(len(one.prompt_ids) + (one.max_tokens or settings.max_tokens) for one in every)
    engine = VllmEngine(model, EngineSettings(), settings, longest, enable_prefix_caching=caching)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    tokens = dict.fromkeys(kinds, 0)
    for _ in range(1 + repeats):
        for name, asked in kinds.items():
            started = time.monotonic()
            tokens[name] = sum(len(one.ids) for one in engine.sample(asked))
            found[name].append(tokens[name] / (time.monotonic() - started))
    return [
        [name, "on" if caching else "off", f"{len(asked):,}", f"{sum(len(one.prompt_ids) for one in asked):,}",
         f"{tokens[name]:,}", f"{statistics.median(found[name][1:]):,.0f}"]
        for name, asked in kinds.items()
    ]  # fmt: skip


def main() -> None:
    """Prints the table; a process for each engine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of an alignment")
    parser.add_argument("--count", type=int, default=1000, help="rollouts of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    (targeted,) = options.out.glob("targeted/*/0/window-0.parquet.parts")
    initial, made_with = requests(options.out / "rollouts" / "initial.parquet.parts", options.count)
    kinds = {"initial": initial, "targeted": requests(targeted, options.count)[0]}
    settings = SamplingSettings(**made_with["settings"])
    model = json.loads((options.out / "alignment.json").read_text())["settings"]["student"]
    rows = []
    for caching in (True, False):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows += pool.submit(measure, model, kinds, settings, caching, options.repeats).result()
    print(markdown_table(HEADS, rows))


if __name__ == "__main__":
    main()
