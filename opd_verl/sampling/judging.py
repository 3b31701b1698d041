"""Judges the responses of finished shards in a pool of processes, resumable by itself."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

import opd_verl.rewards
from opd_verl.config.errors import ConfigError
from opd_verl.rewards import last_boxed
from opd_verl.sampling.parts import Parts
from opd_verl.sampling.settings import OWN_REWARD, RewardSettings
from opd_verl.sampling.shards import shard_ranges
from opd_verl.utils.files import digest

CORRECT = 0.5
"""A response with a score above is correct, whatever the judge's scale for wrong ones (0 or -1)."""

JUDGED_SCHEMA = pa.schema({"scores": pa.list_(pa.float64()), "answers": pa.list_(pa.string())})
"""Columns of a judged shard, a row per prompt, n entries each."""
CHUNK = 16
"""Responses that a process takes at a time."""
RESPONSE_PREFIX = "response_prefix"
"""Column of the source: the text that a row's responses go on from; the judge reads both."""

JudgeTask = tuple[RewardSettings, dict[str, Any]]
Judgement = tuple[float, str]
"""Score, and the answer that was found in the response (empty: none)."""


def judge_shards(
    generated: Parts, judged: Parts, source: pa.Table, size: int, reward: RewardSettings, workers: int
) -> None:
    """Judges every shard of `generated` that `judged` lacks.

    Args:
        source: the rows that were sampled from, in order.
        size: prompts per shard.
        workers: processes; each may hold a math-verify process besides.
    """
    ranges = shard_ranges(len(source), size)
    total = sum(len(ranges[index]) for index in judged.missing())
    if not total:
        return
    # Not forked: this process may have threads.
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=total, desc=f"judging {judged.folder.parent.name.removesuffix('.parts')}", unit="problem") as bar,
    ):
        for index in judged.missing():
            rows = source.slice(ranges[index].start, len(ranges[index]))
            responses = generated.read(index)["responses"].to_pylist()
            verdicts = pool.map(judge_response, _tasks(rows, responses, reward), chunksize=CHUNK)
            judged.write(index, _table(verdicts, [len(group) for group in responses]))
            bar.update(len(rows))


def judge_settings(reward: RewardSettings) -> dict[str, Any]:
    """What verdicts depend on: the function, and the file that it is in."""
    source = inspect.getsourcefile(load_reward(reward))
    return {"path": reward.path, "name": reward.name, "file": digest(Path(source)) if source else None}


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _tasks(rows: pa.Table, responses: list[list[str]], reward: RewardSettings) -> Iterator[JudgeTask]:
    wanted = ("data_source", "reward_model", "extra_info", RESPONSE_PREFIX)
    columns = rows.select([name for name in wanted if name in rows.column_names])
    for row, group in zip(columns.to_pylist(), responses, strict=True):
        known = {
            "data_source": row.get("data_source") or "",
            "ground_truth": row["reward_model"]["ground_truth"],
            "extra_info": row.get("extra_info") or {},
        }
        for text in group:
            yield reward, known | {"solution_str": row.get(RESPONSE_PREFIX, "") + text}


def _table(verdicts: Iterator[Judgement], counts: list[int]) -> pa.Table:
    groups = [[next(verdicts) for _ in range(count)] for count in counts]
    columns = {
        name: [[one[place] for one in group] for group in groups] for place, name in enumerate(JUDGED_SCHEMA.names)
    }
    return pa.table(columns, schema=JUDGED_SCHEMA)


@cache
def load_reward(reward: RewardSettings) -> Callable[..., Any]:
    """The reward function, found as verl finds it. Raises ConfigError if it is not there."""
    try:
        if reward.path == OWN_REWARD:  # verl takes seconds to import
            return getattr(opd_verl.rewards, reward.name)
        from verl.utils.import_utils import load_extern_object

        found: Any = load_extern_object(module_path=reward.path, object_name=reward.name)
        return found
    except (FileNotFoundError, ModuleNotFoundError, AttributeError) as error:
        remedy = "reward.path=/path/to/file.py (or pkg://a.module) reward.name=its_function"
        raise ConfigError("reward", f"{reward.path}:{reward.name}", str(error), remedy) from error


def judge_response(task: JudgeTask) -> Judgement:
    """One response's score and answer, by a function in verl's calling convention; a number alone is a score."""
    reward, arguments = task
    found = load_reward(reward)(**arguments)
    if inspect.isawaitable(found):
        found = asyncio.run(_await(found))
    fields = found if isinstance(found, dict) else {"score": found}
    answer = fields["pred"] if "pred" in fields else last_boxed(arguments["solution_str"])
    return float(fields["score"]), "" if answer is None else str(answer)


async def _await(found: Any) -> Any:
    return await found
