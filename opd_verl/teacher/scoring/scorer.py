"""The teacher's forward pass: rollouts in, per-token statistics and last hidden states out. No Ray, no verl.

Shapes: R response tokens, P prompt tokens, H hidden size, V = vocab_limit, K ids. Nats, float32, no gradients.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from opd_verl.fused.head import LMHead
from opd_verl.fused.statistics import RowStatistics, row_statistics
from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import batch_requests, fed_ids
from opd_verl.teacher.scoring.limits import ModelLimits
from opd_verl.teacher.scoring.reader import LocalReader, ModelSpec, Reader, default_device
from opd_verl.teacher.scoring.state import RolloutState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "auto")
CPU_ROWS, DEVICE_ROWS = 128, 1024
"""Rows of logits at one time. 128 rows still fit a CPU's caches, which is 1.5 times as fast as 1024 rows."""
PROBE_TOLERANCE = 0.02
"""Relative difference allowed between our head and the model's own logits; a bf16 model needs about 0.004."""


class Scorer:
    """A causal LM that scores rollouts. Nothing changes after construction, so threads may share it.

    `reader` (None: the model of this process) gives the hidden states; one thread at a time may score. `probe`: whether
    to check the LM head now. Where the weights are not on their device yet, call `probe` later.
    Raises ValueError for a vocab_limit, temperature or budget out of range, and for a model whose logits are not
    `LMHead`'s function of its last hidden states (seen on a probe of four tokens).
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocab_limit: int,
        temperature: float = 1.0,
        max_tokens_per_batch: int = 16384,
        chunk_rows: int | None = None,
        reader: Reader | None = None,
        probe: bool = True,
    ) -> None:
        if min(max_tokens_per_batch, 1 if chunk_rows is None else chunk_rows) < 1:
            raise ValueError(f"{max_tokens_per_batch=} and {chunk_rows=} must be positive")
        self.model = model.eval().requires_grad_(False)
        self.reader: Reader = LocalReader(model) if reader is None else reader
        self.body = self.reader.body
        self.vocab_limit, self.temperature = vocab_limit, temperature
        self.max_tokens_per_batch = max_tokens_per_batch
        self.chunk_rows = chunk_rows
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        embeddings = model.get_input_embeddings().get_parameter("weight")
        self.limits = ModelLimits(vocab_limit, len(embeddings), positions)
        LMHead.of(model, vocab_limit, temperature)  # for its errors alone: a bad vocab_limit or temperature
        if probe:
            self.probe()

    @property
    def head(self) -> LMHead:
        """The model's head, on the device that the weights are on now."""
        # Made anew each time: a colocated teacher's weights move between host and device.
        return LMHead.of(self.model, self.vocab_limit, self.temperature)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        vocab_limit: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        attn_implementation: str = "sdpa",
        trust_remote_code: bool = False,
        temperature: float = 1.0,
        max_tokens_per_batch: int = 16384,
        chunk_rows: int | None = None,
        load: Callable[[ModelSpec], Reader] = LocalReader.load,
        probe: bool = True,
    ) -> Self:
        """Scorer of a local or hub checkpoint; `vocab_limit` None: len(tokenizer), `device` None: CUDA if there is one.

        `dtype` is float32, bfloat16 or auto (the checkpoint's own); ValueError otherwise, and as the constructor.
        """
        from transformers import AutoTokenizer

        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} of the teacher; choose one of {', '.join(DTYPES)}")
        if vocab_limit is None:
            vocab_limit = len(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code))
        reader = load(ModelSpec(path, dtype, device or default_device(), attn_implementation, trust_remote_code))
        return cls(reader.model, vocab_limit, temperature, max_tokens_per_batch, chunk_rows, reader, probe)

    def rows(self, device: torch.device) -> int:
        """Rows of logits that exist at one time: `chunk_rows`, or the device's default."""
        return self.chunk_rows or (CPU_ROWS if device.type == "cpu" else DEVICE_ROWS)

    def check(self, request: ScoreRequest) -> None:
        """Raises ValueError if the model cannot score the request: too long, or ids it has no embedding for."""
        self.limits.check(request)

    def score(self, requests: Sequence[ScoreRequest], topk: int = 0) -> list[RolloutState]:
        """States in the order of `requests`, in batches of at most max_tokens_per_batch tokens, padding included.

        `topk` > 0 adds the teacher's most likely ids. Raises ValueError as `check` does, or for topk > vocab_limit.
        """
        for request in requests:
            self.check(request)
        states: dict[int, RolloutState] = {}
        for batch in self.batches(requests):
            states.update(zip(batch, self.score_batch([requests[index] for index in batch], topk), strict=True))
        return [states[index] for index in range(len(requests))]

    def batches(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests in each forward pass: as many as fit the token budget of all ranks."""
        packs, share, ranks = self.reader.packs, self.reader.may_share, self.reader.ranks
        parts = batch_requests(requests, self.max_tokens_per_batch, not packs, share)
        return [list(chain(*parts[first : first + ranks])) for first in range(0, len(parts), ranks)]

    @torch.inference_mode()
    def score_batch(self, requests: Sequence[ScoreRequest], topk: int = 0) -> list[RolloutState]:
        """One forward pass over requests that passed `check` and fit the budget together."""
        if not 0 <= topk <= self.vocab_limit:
            raise ValueError(f"topk={topk} must lie in 0..vocab_limit={self.vocab_limit}")
        head = self.head
        device = head.weight.device
        lengths = [len(request.response_ids) for request in requests]
        tokens = torch.cat([torch.tensor(request.response_ids, dtype=torch.long) for request in requests]).to(device)
        hidden = self._response_rows(requests)
        # Sums over the vocabulary are float32, in chunks of rows, for a model of any dtype (opd_verl.fused).
        stats = row_statistics(head, hidden, tokens[:, None], topk, rows=self.rows(device))
        return _split_states(hidden, stats, lengths, topk)

    @torch.inference_mode()
    def log_q_at(self, state: RolloutState, ids: Tensor) -> Tensor:
        """log q_t(v) for v in ids [R, K] (integers): f32 [R, K] on the CPU, in the order of `ids`.

        Costs K dot products per token and no forward pass: the logsumexp is stored. Raises ValueError for a wrong row
        count and for ids outside 0..vocab_limit-1.
        """
        if ids.ndim != 2 or len(ids) != len(state.hidden):
            raise ValueError(f"ids of shape {tuple(ids.shape)}, expected [R, K] with R={len(state.hidden)}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_limit:
            raise ValueError(f"ids {int(ids.min())}..{int(ids.max())} outside 0..{self.vocab_limit - 1} (vocab_limit)")
        head = self.head
        device = head.weight.device
        parts = (state.hidden.to(device), ids.to(device, torch.long), state.logsumexp.to(device))
        chunks = zip(*(part.split(self.rows(device)) for part in parts), strict=True)
        return torch.cat([head.logits_at(hidden, at) - lse[:, None] for hidden, at, lse in chunks]).cpu()

    def _response_rows(self, requests: Sequence[ScoreRequest]) -> Tensor:
        """Last hidden states of every request's response positions, [sum R, H]. Only this function runs the body."""
        requests = [request for request in requests if len(request.response_ids)]
        if not requests:
            return self.head.weight.new_zeros(0, self.head.weight.shape[1])
        return self.reader.rows(requests)

    @torch.inference_mode()
    def probe(self) -> None:
        """Raises ValueError where our logits differ from the model's own: `LMHead` then lacks a part of the head."""
        probe = ScoreRequest("probe", np.zeros(1), np.arange(min(4, self.vocab_limit)))
        head, hidden = self.head, self.reader.rows([probe])
        theirs = self.reader.logits(fed_ids(probe))[:, : self.vocab_limit].float()
        ours = head.logits(hidden) * head.temperature
        # NaN weights compare False and pass: their tokens become invalid, which is counted
        if (ours - theirs).norm() > PROBE_TOLERANCE * theirs.norm():
            raise ValueError(
                f"{type(self.model).__name__}: logits are not lm_head(last hidden state); look in its config for a "
                "logit scale, soft cap or multiplier, and add it to opd_verl/fused/head.py"
            )


def _split_states(hidden: Tensor, stats: RowStatistics, lengths: list[int], topk: int) -> list[RolloutState]:
    """One state per request. Tensors are cloned, so that dropping one rollout frees its memory."""
    cpu = [x.cpu() for x in (stats.log_p[:, 0], stats.entropy, stats.topk_ids, stats.topk_log_p)]
    rows = zip(*(x.split(lengths) for x in (hidden, stats.logsumexp, *cpu)), strict=True)
    keep = slice(None) if topk else slice(0, 4)  # without top-k: hidden, logsumexp, log_q, entropy
    return [RolloutState(*(part.clone() for part in row[keep])) for row in rows]
