"""Targeted rollouts through vLLM: from orders to judged responses, each window in files of its own.

OUT/targeted/TREE/generations.json               digests of teachers and settings, one for each generation
OUT/targeted/TREE/0/window-0.orders.parquet      orders, made once: a run that is killed resumes with them
OUT/targeted/TREE/0/window-0.parquet             judged responses, `per_request` in a row
OUT/targeted/TREE/0/window-0.done.json           seconds that sampling and judging took

TREE is a digest of the initial rollouts. Other teachers or another budget make another generation, whose trees have the
rollouts of all earlier generations. A repeated command resumes its own generation, with the same results.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.responses import judged_responses
from opd_verl.alignment.tree.enrich import Launched, Order
from opd_verl.alignment.tree.generation_tree import Ints, PackedRollouts
from opd_verl.alignment.tree.question import QuestionTree
from opd_verl.sampling.generate import REQUESTS_SCHEMA
from opd_verl.sampling.judging import CORRECT, RESPONSE_PREFIX, RewardArguments, judge_response
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import ragged
from opd_verl.sampling.rollouts import Generate, Sampler, SamplingJob
from opd_verl.sampling.rows import identities
from opd_verl.sampling.shards import MAX_TOKENS
from opd_verl.utils.files import json_digest, write_json, write_table

ORDERS = pa.schema({"question": pa.int32(), "prefix": pa.list_(pa.int32()), "count": pa.int32()})


@dataclass(frozen=True, eq=False)
class PrefixOrder:
    """Rollouts that are wanted behind a prefix of a response."""

    question: int
    prefix: Ints
    count: int


LaunchedResponse = tuple[PrefixOrder, Ints, bool]
"""A response behind an ordered prefix: its order, the whole path, and whether it is correct."""


def generations(folder: File, identity: str) -> tuple[File, list[File]]:
    """The folder of the generation `identity`, and the folders of the generations before it."""
    index = folder / "generations.json"
    known: list[str] = json.loads(index.read_text()) if index.exists() else []
    if identity not in known:
        write_json(index, known := [*known, identity])
    place = known.index(identity)
    return folder / str(place), [folder / str(before) for before in range(place)]


@dataclass(frozen=True, eq=False)
class Launcher:
    """Launches the orders of a window; a finished window is read from its files."""

    questions: Mapping[int, QuestionTree]
    student: Model
    rows: pa.Table
    """Rows of the prompts file, for the judge."""
    prompt_ids: Sequence[Sequence[int]]
    config: AlignmentConfig
    generate: Generate
    folder: File
    """Folder of the generation."""

    def __call__(self, window: int, wanted: Callable[[], Sequence[Order]]) -> Launched:
        """Samples and judges the rollouts that a window orders."""
        stem = self.folder / f"window-{window}"
        orders, timer = stem.with_suffix(".orders.parquet"), stem.with_suffix(".done.json")
        if not orders.exists():
            write_table(orders, self._pieces(wanted()))
        started, launched = time.monotonic(), self._carry_out(orders, stem.with_suffix(".parquet"))
        if not timer.exists():
            write_json(timer, time.monotonic() - started)
        # The first run's time: a resumed run finds its rollouts at once, and the budget must not take them for free.
        return replace(launched, seconds=float(json.loads(timer.read_text())))

    def earlier(self, folder: File) -> Iterator[Launched]:
        """The rollouts of the finished windows of an earlier generation, window by window."""
        done = sorted(folder.glob("window-*.done.json"), key=lambda file: int(file.name.split(".")[0].split("-")[1]))
        for file in done:
            stem = file.with_name(file.name.removesuffix(".done.json"))
            yield self._carry_out(stem.with_suffix(".orders.parquet"), stem.with_suffix(".parquet"))

    def _pieces(self, orders: Sequence[Order]) -> pa.Table:
        targets = [order.target for order in orders]
        paths = [self.questions[target.question].paths[target.path] for target in targets]
        prefixes = [
            np.append(path.tokens[: target.depth], target.token) for target, path in zip(targets, paths, strict=True)
        ]
        columns = {"question": [target.question for target in targets], "prefix": prefixes}
        return pa.table(columns | {"count": [order.count for order in orders]}, schema=ORDERS)

    def _carry_out(self, orders: File, out: File) -> Launched:
        table = pq.read_table(orders)
        columns = (table["question"].to_pylist(), ragged(table["prefix"]), table["count"].to_pylist())
        pieces = [PrefixOrder(*row) for row in zip(*columns, strict=True) if row[0] in self.questions]
        ends = end_tokens(self.student)
        over = [int(piece.prefix[-1]) in ends or len(piece.prefix) >= self.config.max_tokens for piece in pieces]
        ended, going = (
            [piece for piece, is_over in zip(pieces, over, strict=True) if is_over is kind] for kind in (True, False)
        )
        rollouts = defaultdict[int, list[tuple[Ints, int, bool]]](list)
        for piece, path, correct in [*self._given(ended), *self._sampled(going, out)]:
            rollouts[piece.question].append((path, len(piece.prefix), correct))
        grouped = {number: PackedRollouts.of(*zip(*rows, strict=True)) for number, rows in rollouts.items()}
        return Launched(grouped, sum(piece.count for piece in going), 0.0)

    def _given(self, pieces: Sequence[PrefixOrder]) -> list[LaunchedResponse]:
        """Responses with nothing left to sample: judged once, and counted as often as they were ordered.

        Every rollout behind such a prefix is the prefix itself, so one verdict is as sure as `count` rollouts.
        """
        verdicts = [(piece, self._judge(piece)) for piece in pieces]
        return [(piece, piece.prefix, correct) for piece, correct in verdicts for _ in range(piece.count)]

    def _judge(self, piece: PrefixOrder) -> bool:
        row = self.rows.slice(piece.question, 1).to_pylist()[0]
        arguments = RewardArguments(
            data_source=row.get("data_source") or "",
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info") or {},
            solution_str=self._text(piece.prefix),
        )
        return judge_response((self.config.reward, arguments))[0] > CORRECT

    def _text(self, path: Ints) -> str:
        return self.student.decode(path.tolist(), skip_special_tokens=True)

    def _sampled(self, pieces: Sequence[PrefixOrder], out: File) -> list[LaunchedResponse]:
        if not pieces:
            return []
        size = self.config.targets.per_request
        # A request samples `size` rollouts: -(-a // b) rounds the number of requests up.
        asked = [piece for piece in pieces for _ in range(-(-piece.count // size))]
        shard = self.config.prompts_per_shard * max(1, self.config.rollouts // size)
        room = [self.config.max_tokens - len(piece.prefix) for piece in asked]
        # About as many rollouts per shard as in the initial sampling. `n` and `max_tokens` hold for the whole batch;
        # the column MAX_TOKENS limits each request.
        settings = replace(self.config.sampling, n=size, max_tokens=max(room), prompts_per_shard=shard)
        job = self._job(asked, room, out)
        Sampler(settings, self.config.engine, self.config.reward, self.config.workers, self.generate).run([job])
        return [
            (piece, np.concatenate([piece.prefix, rest]), correct)
            for piece, responses in zip(asked, judged_responses(out), strict=True)
            for rest, correct in responses
        ]

    def _job(self, asked: Sequence[PrefixOrder], room: Sequence[int], out: File) -> SamplingJob:
        prompts = [[*self.prompt_ids[piece.question], *piece.prefix.tolist()] for piece in asked]
        source = self.rows.take([piece.question for piece in asked])
        # The judge reads the prefix and the tokens sampled behind it as one response.
        source = source.append_column(RESPONSE_PREFIX, pa.array([self._text(piece.prefix) for piece in asked]))
        # Generation and window are part of the identity, which seeds the sampling: the same prefix, ordered again
        # later, gets other rollouts.
        where = f"{out.parent.name}/{out.stem}"
        names = identities([[{"window": where, "prompt": json_digest(ids)}] for ids in prompts])
        table = pa.table({"identity": names, "prompt_ids": prompts}, schema=REQUESTS_SCHEMA)
        return SamplingJob(self.student, source, table.append_column(MAX_TOKENS, pa.array(room, pa.int32())), out)


def end_tokens(model: Model) -> set[int]:
    """Ids that end a response in vLLM: the tokenizer's, and the ids in the model's generation_config.json."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(model.path).eos_token_id
    except OSError:
        configured = None
    listed = configured if isinstance(configured, list) else [configured]
    return {end for end in [*listed, model.tokenizer.eos_token_id] if isinstance(end, int)}
