"""Measures tokens per second of an alignment's initial and targeted rollouts, with and without prefix caching.

    python -m opd_verl.experiments.alignment_throughput runs/alignment

Samples the first rollouts of both kinds again, in their order: once to warm up, then `--repeats` times in turn. Prompt
tokens are counted as an engine without cache reads them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq

from opd_verl.sampling.parts import REQUESTS
from opd_verl.sampling.settings import EngineSettings, SamplingSettings
from opd_verl.sampling.shards import MAX_TOKENS, Request, shard_requests
from opd_verl.utils.markdown import markdown_table

HEADS = ("rollouts", "prefix caching", "rollouts sampled", "prompt tokens", "sampled tokens", "sampled tokens/s")


def requests(parts: Path, count: int) -> tuple[list[Request], SamplingSettings]:
    """Reads the first requests of a rollouts file's parts, and the settings of their sampling."""
    table = pq.read_table(parts / REQUESTS).slice(0, count).to_pydict()
    settings = SamplingSettings(**json.loads((parts / "settings.json").read_text())["settings"])
    limits = table.get(MAX_TOKENS)
    return shard_requests(table["identity"], table["prompt_ids"], settings.n, settings.seed, limits)[:count], settings


def measure(
    model: str, kinds: Mapping[str, Sequence[Request]], settings: SamplingSettings, caching: bool, repeats: int
) -> list[list[str]]:
    """Samples both kinds in one engine. Returns a table row for each kind."""
    from opd_verl.sampling.vllm_engine import VllmEngine

    every = [request for asked in kinds.values() for request in asked]
    longest = max(len(request.prompt_ids) + (request.max_tokens or settings.max_tokens) for request in every)
    engine = VllmEngine(model, EngineSettings(), settings, longest, enable_prefix_caching=caching)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    tokens = dict.fromkeys(kinds, 0)
    for _ in range(1 + repeats):
        for name, asked in kinds.items():
            started = time.monotonic()
            tokens[name] = sum(len(sampled.ids) for sampled in engine.sample(asked))
            rates[name].append(tokens[name] / (time.monotonic() - started))
    return [
        [name, "on" if caching else "off", f"{len(asked):,}", f"{sum(len(request.prompt_ids) for request in asked):,}",
         f"{tokens[name]:,}", f"{statistics.median(rates[name][1:]):,.0f}"]
        for name, asked in kinds.items()
    ]  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of an alignment")
    parser.add_argument("--count", type=int, default=1000, help="rollouts of each kind")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds")
    options = parser.parse_args()
    (targeted,) = options.out.glob("targeted/*/0/window-0.parquet.parts")
    initial, settings = requests(options.out / "rollouts" / "initial.parquet.parts", options.count)
    kinds = {"initial": initial, "targeted": requests(targeted, options.count)[0]}
    model = json.loads((options.out / "alignment.json").read_text())["settings"]["student"]
    rows = []
    for caching in (True, False):  # a process per engine: vLLM does not give its memory back within a process
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows += pool.submit(measure, model, kinds, settings, caching, options.repeats).result()
    print(markdown_table(HEADS, rows))


if __name__ == "__main__":
    main()
