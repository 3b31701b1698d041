"""Fills the shards of one model: the parent's side, and the child process that runs vLLM (`__main__`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.sampling.child import carry_out, run_child
from opd_verl.sampling.parts import REQUESTS, ShardFolder
from opd_verl.sampling.settings import EngineSettings, SamplingSettings, from_fields
from opd_verl.sampling.shards import Request, Response, SampleFunction, fill

if TYPE_CHECKING:
    from opd_verl.sampling.vllm_engine import VllmEngine

REQUESTS_SCHEMA = pa.schema({"identity": pa.string(), "prompt_ids": pa.list_(pa.int32())})
"""Columns of the requests beside the shards: the name and the token ids of every prompt."""


@dataclass(frozen=True)
class GenerationTask:
    """Shards to fill from one model, all with the same settings."""

    model: str
    settings: SamplingSettings
    engine: EngineSettings
    longest: int
    """Tokens of the longest prompt with its response, over all jobs of the model."""
    parts: Sequence[ShardFolder]
    log: Path


class ChildTask(TypedDict):
    """A GenerationTask in the plain values that the child receives."""

    model: str
    settings: dict[str, object]
    engine: dict[str, object]
    longest: int
    parts: list[tuple[str, int]]
    """Folder and number of shards of each job that lacks shards."""


def generate_in_child(task: GenerationTask) -> None:
    """Samples all missing shards in a child process. Starts no process if none is missing."""
    todo = [part for part in task.parts if part.missing()]
    if todo:
        child_task = ChildTask(
            model=task.model,
            settings=asdict(task.settings),
            engine=asdict(task.engine),
            longest=task.longest,
            parts=[(str(part.folder), part.count) for part in todo],
        )
        run_child("opd_verl.sampling.generate", child_task, task.log)


def label(folder: Path) -> str:
    """Name of the shards in `folder` for a progress bar: the file made from them."""
    return folder.name.removesuffix(".parts").removesuffix(".parquet")


def main(task: ChildTask, terminal: TextIO) -> None:
    """Runs in the child: loads the model once and fills the shards of all jobs."""
    # vLLM takes seconds to import and changes the process; only the child does it.
    from opd_verl.sampling.vllm_engine import VllmEngine

    settings = from_fields(SamplingSettings, task["settings"])
    vllm = VllmEngine(task["model"], from_fields(EngineSettings, task["engine"]), settings, task["longest"])
    for folder, count in task["parts"]:
        parts = ShardFolder(Path(folder), count)
        sample = _with_bar(vllm, terminal, f"{Path(task['model']).name}: {label(parts.folder)}", parts)
        fill(parts, pq.read_table(parts.folder / REQUESTS), settings, sample)


def _with_bar(vllm: "VllmEngine", terminal: TextIO, name: str, parts: ShardFolder) -> SampleFunction:
    """The engine's `sample`, with vLLM's progress bar for each shard on the parent's terminal and with our label."""
    from tqdm import tqdm

    def bar(*items: Any, **options: Any) -> tqdm:  # vLLM makes two: over its prompts, and one that it counts up
        shard = f"{name}, shard {parts.count - len(parts.missing()) + 1}/{parts.count}"
        return tqdm(*items, **(options | {"desc": shard, "file": terminal, "leave": False, "unit": "response"}))

    def sample(requests: Sequence[Request]) -> Sequence[Response]:
        return vllm.sample(requests, bar)

    return sample


if __name__ == "__main__":
    carry_out(main)
