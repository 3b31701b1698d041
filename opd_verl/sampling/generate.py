"""Fills the shards of one model: the parent's side, and the child process that vLLM lives in (`__main__`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.sampling.child import carry_out, run_child
from opd_verl.sampling.parts import Parts
from opd_verl.sampling.settings import EngineSettings, SamplingSettings
from opd_verl.sampling.shards import Request, Response, SampleFunction, fill

if TYPE_CHECKING:
    from opd_verl.sampling.vllm_engine import VllmEngine

REQUESTS = "requests.parquet"
"""Beside the shards: identity and prompt_ids of every prompt."""
REQUESTS_SCHEMA = pa.schema({"identity": pa.string(), "prompt_ids": pa.list_(pa.int32())})


@dataclass(frozen=True)
class GenerationTask:
    """Shards to fill from one model, all with the same settings."""

    model: str
    settings: SamplingSettings
    engine: EngineSettings
    longest: int
    """Tokens of the longest prompt with its response, of all jobs of the model."""
    parts: Sequence[Parts]
    log: Path


def generate_in_child(work: GenerationTask) -> None:
    """Samples what is missing, in a child process; starts none if nothing is."""
    todo = [part for part in work.parts if part.missing()]
    if todo:
        folders = [[str(part.folder), part.count] for part in todo]
        task = asdict(work) | {"parts": folders, "log": str(work.log)}
        run_child("opd_verl.sampling.generate", task, work.log)


def label(folder: Path) -> str:
    """What a progress bar calls the shards in `folder`: the file that they become."""
    return folder.name.removesuffix(".parts").removesuffix(".parquet")


def main(task: dict[str, Any], terminal: TextIO) -> None:
    """The child: loads the model once, fills the shards of all jobs."""
    from opd_verl.sampling.vllm_engine import VllmEngine

    settings, engine = SamplingSettings(**task["settings"]), EngineSettings(**task["engine"])
    vllm = VllmEngine(task["model"], engine, settings, task["longest"])
    for folder, count in task["parts"]:
        parts = Parts(Path(folder), count)
        sample = _with_bar(vllm, terminal, f"{Path(task['model']).name}: {label(parts.folder)}", parts)
        fill(parts, pq.read_table(parts.folder / REQUESTS), settings, sample)


def _with_bar(vllm: "VllmEngine", terminal: TextIO, name: str, parts: Parts) -> SampleFunction:
    """vLLM's own progress bar, a new one for each shard, on the parent's terminal and with our words."""
    from tqdm import tqdm

    def bar(*items: Any, **options: Any) -> tqdm:
        shard = f"{name}, shard {parts.count - len(parts.missing()) + 1}/{parts.count}"
        return tqdm(*items, **(options | {"desc": shard, "file": terminal, "leave": False, "unit": "response"}))

    def sample(requests: Sequence[Request]) -> Sequence[Response]:
        return vllm.sample(requests, bar)

    return sample


if __name__ == "__main__":
    carry_out(main)
