"""Judges the responses of finished shards in a pool of processes, and resumes apart from the sampling."""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import pyarrow as pa
from tqdm import tqdm

import opd_verl.rewards
from opd_verl.config.errors import ConfigError
from opd_verl.rewards import last_boxed
from opd_verl.sampling.parts import ShardFolder
from opd_verl.sampling.settings import OWN_REWARD, RewardSettings
from opd_verl.sampling.shards import shard_ranges
from opd_verl.utils.files import digest

CORRECT = 0.5
"""A response with a higher score is correct: some judges give wrong responses 0, others -1."""

JUDGED_SCHEMA = pa.schema({"scores": pa.list_(pa.float64()), "answers": pa.list_(pa.string())})
"""Columns of a judged shard, a row per prompt, n entries each."""
CHUNK = 16
"""Responses per batch of a judging process."""
RESPONSE_PREFIX = "response_prefix"
"""Column of the source: a text that the row's responses continue. The judge reads this text and the response."""


class ScoreFields(TypedDict):
    """A reward function's result in verl's long form."""

    score: float
    pred: NotRequired[str | None]
    """The answer that the function found in the response."""


RewardResult = float | ScoreFields
RewardFunction = Callable[..., RewardResult | Awaitable[RewardResult]]
"""verl's calling convention: data_source, solution_str, ground_truth, extra_info; the function may be async."""


class RewardArguments(TypedDict):
    """Arguments of a reward function, under verl's names."""

    data_source: str
    solution_str: str
    ground_truth: object
    extra_info: dict[str, object]


JudgeTask = tuple[RewardSettings, RewardArguments]
Judgement = tuple[float, str]
"""Score, and the answer found in the response (empty: no answer)."""


def judge_shards(
    generated: ShardFolder, judged: ShardFolder, source: pa.Table, size: int, reward: RewardSettings, workers: int
) -> None:
    """Judges every shard of `generated` that `judged` lacks.

    Args:
        source: the rows whose prompts were sampled, in order.
        size: prompts per shard.
        workers: processes; each may start a math-verify process of its own.
    """
    ranges = shard_ranges(len(source), size)
    total = sum(len(ranges[index]) for index in judged.missing())
    if not total:
        return
    # Spawned, not forked: this process may have threads, and a fork copies their locks but not the threads.
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=total, desc=f"judging {judged.folder.parent.name.removesuffix('.parts')}", unit="problem") as bar,
    ):
        for index in judged.missing():
            rows = source.slice(ranges[index].start, len(ranges[index]))
            responses = generated.read(index)["responses"].to_pylist()
            judgements = pool.map(judge_response, _tasks(rows, responses, reward), chunksize=CHUNK)
            judged.write(index, _table(judgements, [len(group) for group in responses]))
            bar.update(len(rows))


def judge_settings(reward: RewardSettings) -> dict[str, str | None]:
    """Everything that scores depend on: the function's name, and the digest of its file."""
    source = inspect.getsourcefile(load_reward(reward))
    return {"path": reward.path, "name": reward.name, "file": digest(Path(source)) if source else None}


def default_workers() -> int:
    """Number of processors that this process may use; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0))


def _tasks(rows: pa.Table, responses: list[list[str]], reward: RewardSettings) -> Iterator[JudgeTask]:
    needed = ("data_source", "reward_model", "extra_info", RESPONSE_PREFIX)
    columns = rows.select([name for name in needed if name in rows.column_names])
    for row, group in zip(columns.to_pylist(), responses, strict=True):
        for text in group:
            arguments = RewardArguments(
                data_source=row.get("data_source") or "",
                solution_str=row.get(RESPONSE_PREFIX, "") + text,
                ground_truth=row["reward_model"]["ground_truth"],
                extra_info=row.get("extra_info") or {},
            )
            yield reward, arguments


def _table(judgements: Iterator[Judgement], counts: list[int]) -> pa.Table:
    groups = [[next(judgements) for _ in range(count)] for count in counts]
    columns = {
        "scores": [[score for score, _ in group] for group in groups],
        "answers": [[answer for _, answer in group] for group in groups],
    }
    return pa.table(columns, schema=JUDGED_SCHEMA)


@cache
def load_reward(reward: RewardSettings) -> RewardFunction:
    """Loads the reward function by verl's rules. Raises ConfigError if the function does not exist."""
    try:
        if reward.path == OWN_REWARD:  # needs no import of verl, which takes seconds in every judging process
            return getattr(opd_verl.rewards, reward.name)
        from verl.utils.import_utils import load_extern_object

        return cast("RewardFunction", load_extern_object(module_path=reward.path, object_name=reward.name))
    except (FileNotFoundError, ModuleNotFoundError, AttributeError) as error:
        remedy = "reward.path=/path/to/file.py (or pkg://a.module) reward.name=its_function"
        raise ConfigError("reward", f"{reward.path}:{reward.name}", str(error), remedy) from error


def judge_response(task: JudgeTask) -> Judgement:
    """Score and answer of one response. A reward function may return only a number: the score."""
    reward, arguments = task
    outcome = load_reward(reward)(**arguments)
    result = asyncio.run(_awaited(outcome)) if isinstance(outcome, Awaitable) else outcome
    fields = result if isinstance(result, dict) else ScoreFields(score=result)
    answer = fields["pred"] if "pred" in fields else last_boxed(arguments["solution_str"])
    return float(fields["score"]), "" if answer is None else str(answer)


async def _awaited(outcome: Awaitable[RewardResult]) -> RewardResult:
    # asyncio.run takes a coroutine; a reward function may return any awaitable.
    return await outcome
