"""Targeted rollouts through vLLM: from orders to judged responses, each window in a file of its own.

OUT/targeted/window-0.json          what was ordered: made once, so that a run that is killed goes on with the same
OUT/targeted/window-0.parquet       the judged responses, `per_request` in a row
OUT/targeted/window-0.done.json     seconds that they took
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path as File
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.enrich import Launched, Order
from opd_verl.alignment.question import Question
from opd_verl.alignment.responses import judged_responses
from opd_verl.alignment.targets import Target
from opd_verl.alignment.tree import Ints, Rollouts
from opd_verl.eval.rows import CORRECT
from opd_verl.files import json_digest, write_json
from opd_verl.sampling.generate import REQUESTS_SCHEMA
from opd_verl.sampling.judging import RESPONSE_PREFIX, verdict
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.rollouts import Generate, Job, sample_jobs
from opd_verl.sampling.rows import identities
from opd_verl.sampling.shards import MAX_TOKENS


@dataclass(frozen=True, eq=False)
class Launcher:
    """Launches the orders of a window; what is finished is read from its files."""

    questions: Mapping[int, Question]
    student: Model
    rows: pa.Table
    """The prompts file's, for the judge."""
    prompt_ids: Sequence[Sequence[int]]
    config: AlignmentConfig
    generate: Generate
    identity: str
    """Of everything that the orders depend on."""

    def __call__(self, window: int, wanted: Callable[[], Sequence[Order]]) -> Launched:
        """Samples and judges what is ordered."""
        folder = File(self.config.out) / "targeted"
        orders = self._orders(folder / f"window-{window}.json", wanted)
        timer, started = folder / f"window-{window}.done.json", time.monotonic()
        ended, going = self._split(orders)
        found = [*self._given(ended), *self._sampled(going, folder / f"window-{window}.parquet", window)]
        if not timer.exists():
            write_json(timer, {"seconds": time.monotonic() - started})
        rollouts = defaultdict[int, list[tuple[Ints, int, bool]]](list)
        for order, path, correct in found:
            rollouts[order.target.question].append((path, order.target.depth + 1, correct))
        grouped = {number: Rollouts.of(*zip(*rows, strict=True)) for number, rows in rollouts.items()}
        seconds = float(json.loads(timer.read_text())["seconds"])
        return Launched(grouped, sum(one.count for one in going), seconds)

    def _orders(self, file: File, wanted: Callable[[], Sequence[Order]]) -> list[Order]:
        if file.exists() and json.loads(file.read_text())["identity"] == self.identity:
            kept = json.loads(file.read_text())["orders"]
            return [Order(Target(**one["target"]), one["count"]) for one in kept]
        orders = list(wanted())
        for stale in file.parent.glob(f"{file.stem}.done.json"):
            stale.unlink()
        write_json(file, {"identity": self.identity, "orders": [asdict(one) for one in orders]})
        return orders

    def prefix(self, target: Target) -> Ints:
        """The response up to the target and with it."""
        path = self.questions[target.question].paths[target.path]
        return np.append(path.tokens[: target.depth], target.token).astype(np.int32)

    def _split(self, orders: Sequence[Order]) -> tuple[list[Order], list[Order]]:
        """Those whose response ends with the target, by its end token or for lack of room; and the others."""
        ends = end_tokens(self.student)
        over = [one.target.token in ends or one.target.depth + 1 >= self.config.max_tokens for one in orders]
        pairs = list(zip(orders, over, strict=True))
        return [one for one, ended in pairs if ended], [one for one, ended in pairs if not ended]

    def _given(self, orders: Sequence[Order]) -> list[tuple[Order, Ints, bool]]:
        """Responses with nothing left to sample: judged once, and as sure as all that were ordered."""
        found = []
        for order in orders:
            path, row = self.prefix(order.target), self.rows.slice(order.target.question, 1).to_pylist()[0]
            found += [(order, path, self._judge(row, path))] * order.count
        return found

    def _judge(self, row: dict[str, Any], path: Ints) -> bool:
        task = {
            "data_source": row.get("data_source") or "",
            "ground_truth": row["reward_model"]["ground_truth"],
            "extra_info": row.get("extra_info") or {},
            "solution_str": self._text(path),
        }
        return verdict((self.config.reward, task))[0] > CORRECT

    def _text(self, path: Ints) -> str:
        return self.student.tokenizer.decode(path.tolist(), skip_special_tokens=True)

    def _sampled(self, orders: Sequence[Order], out: File, window: int) -> list[tuple[Order, Ints, bool]]:
        if not orders:
            return []
        size = self.config.targets.per_request
        requests = [order for order in orders for _ in range(order.count // size)]
        prefixes = [self.prefix(order.target) for order in requests]
        job = self._job(requests, prefixes, out, window)
        room = max(self.config.max_tokens - order.target.depth - 1 for order in requests)
        shard = self.config.prompts_per_shard * max(1, self.config.rollouts // size)
        settings = replace(self.config.sampling, n=size, max_tokens=room, prompts_per_shard=shard)
        sample_jobs([job], settings, self.config.engine, self.config.reward, self.config.workers, self.generate)
        groups = zip(requests, prefixes, judged_responses(out), strict=True)
        return [
            (order, np.concatenate([prefix, one]), correct)
            for order, prefix, responses in groups
            for one, correct in responses
        ]

    def _job(self, requests: Sequence[Order], prefixes: Sequence[Ints], out: File, window: int) -> Job:
        prompts = [
            [*self.prompt_ids[order.target.question], *prefix.tolist()]
            for order, prefix in zip(requests, prefixes, strict=True)
        ]
        source = self.rows.take([order.target.question for order in requests])
        source = source.append_column(RESPONSE_PREFIX, pa.array([self._text(one) for one in prefixes]))
        names = identities([[{"window": window, "prompt": json_digest(ids)}] for ids in prompts])
        columns = {"identity": names, "prompt_ids": prompts}
        table = pa.table(columns, schema=REQUESTS_SCHEMA)
        room = [self.config.max_tokens - order.target.depth - 1 for order in requests]
        return Job(self.student, source, table.append_column(MAX_TOKENS, pa.array(room, pa.int32())), out)


def end_tokens(model: Model) -> set[int]:
    """Ids that end a response in vLLM: the tokenizer's, and those of the model's generation_config.json."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model.path).eos_token_id
    except OSError:
        found = None
    own = [] if found is None else found if isinstance(found, list) else [found]
    return {*own, *filter(lambda one: one is not None, [model.tokenizer.eos_token_id])}
