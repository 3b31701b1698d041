"""A tiny model on disk, verl-format problems, and an engine that answers without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_models import save_tiny_qwen3, tiny_tokenizer

from opd_verl.sampling.generate import GenerationTask
from opd_verl.sampling.parts import REQUESTS
from opd_verl.sampling.shards import Request, Response, SampleFunction, fill

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w2{% endif %}"
    "{% if hint is defined %} {{ hint }}{% endif %}"
)
CONTEXT = 128
"""Positions of the tiny model."""


def save_model(path: Path, seed: int = 0) -> str:
    """A random Qwen3 with a chat template."""
    save_tiny_qwen3(path, seed=seed)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


def problem(index: int, question: str | None = None) -> dict[str, Any]:
    """One row of verl's format, whose answer is `index` modulo 3."""
    return {
        "data_source": "test/modulo",
        "prompt": [{"role": "user", "content": question or f"w{index + 3} w5"}],
        "reward_model": {"style": "rule", "ground_truth": str(index % 3)},
        "extra_info": {"index": index},
    }


def write_problems(path: Path, count: int = 7) -> Path:
    """`count` problems as parquet."""
    pq.write_table(pa.Table.from_pylist([problem(index) for index in range(count)]), path)
    return path


def answer(request: Request) -> Response:
    """Boxes one of 0, 1, 2 by the request's seed; every fifth seed is cut, with no answer."""
    cut = request.seed % 5 == 0
    ids = [3 + (request.seed >> place) % 90 for place in range(2 + request.seed % 4)] + [1] * (not cut)
    return Response(ids, "w3 and on" if cut else f"w3 \\boxed{{{request.seed % 3}}}", not cut)


def answers(requests: Sequence[Request]) -> list[Response]:
    """A `Sample` function."""
    return [answer(request) for request in requests]


class FakeGenerate:
    """Fills shards as the child does, and counts what it was asked."""

    def __init__(self, sample: SampleFunction = answers) -> None:
        self.sample, self.asked = sample, 0

    def __call__(self, work: GenerationTask) -> None:
        for parts in work.parts:
            fill(parts, pq.read_table(parts.folder / REQUESTS), work.settings, self._counted)

    def _counted(self, requests: Sequence[Request]) -> Sequence[Response]:
        self.asked += len(requests)
        return self.sample(requests)
