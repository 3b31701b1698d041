"""The trainer's side: a step's rollouts to a page and JSON in `samples/`, and to wandb where the run logs there."""

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from torch import Tensor

from opd_verl.config.sections import SamplesConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.metrics.quadrants import quadrant
from opd_verl.metrics.thresholds import LOW_ENTROPY
from opd_verl.tracking.samples.choose import Chosen, choose
from opd_verl.tracking.samples.html import page, response_page, scale_of
from opd_verl.tracking.samples.record import Sample, Token, to_json
from opd_verl.tracking.samples.tokens import token_texts, top_tokens
from opd_verl.utils.files import write_text

logger = logging.getLogger(__name__)
COLUMNS = ("rollout", "chosen", "prompt", "response", "tokens", "mean_r_t", "score", "correct")


@dataclass(frozen=True)
class Scored:
    """A step's rollouts with what each token is worth."""

    batch: Any
    """Their keys and tags."""
    responses: Any
    """Token ids, nested [B, R]."""
    inputs: RewardInputs
    reward: Tensor
    """r_t [B, R]."""
    weights: Tensor | None
    """`opd_weights` [B, R]; None: every token of the mask counts."""
    top: tuple[Any, Any] | None = None
    """The teacher's top-k ids and log q, nested [B, R, K], in the steps that read them."""

    @property
    def trained(self) -> Tensor:
        """Which tokens have a part in the loss, bool [B, R]."""
        mask = self.inputs.mask.bool()
        return mask if self.weights is None else mask & (self.weights > 0)

    def mean_rewards(self) -> list[float]:
        """Mean r_t of each rollout over its unmasked tokens; NaN where there is none, and for verl's padding rows."""
        mask = self.inputs.mask
        means = ((self.reward * mask).sum(-1) / mask.sum(-1)).tolist()
        padding = [tag.get("is_padding", False) for tag in self.batch.tags]
        return [float("nan") if is_padding else mean for mean, is_padding in zip(means, padding, strict=True)]


class SampleRollouts:
    """Shows `opd.samples.count` rollouts after every `opd.samples.every` steps."""

    def __init__(self, samples: SamplesConfig, config: DictConfig, tokenizer: Any) -> None:
        self.samples, self.failed = samples, False
        self.decode = partial(tokenizer.decode, skip_special_tokens=False)
        self.folder = Path(config.trainer.default_local_dir) / "samples"
        self.seed = config.actor_rollout_ref.rollout.seed

    def show(self, scored: Scored, step: int, tracking: Any) -> None:
        """Writes the page and its JSON, and logs the table to verl's loggers, if it is time to.

        A failure (a full disk) is warned about once and ends nothing.
        """
        if not self.samples.every or step % self.samples.every:
            return
        try:
            found = self.collect(scored, step)
            write_text(self.folder / f"step_{step:06d}.html", page(step, found))
            content = {"step": step, "rollouts": [to_json(one) for one in found]}
            write_text(self.folder / f"step_{step:06d}.json", json.dumps(content, ensure_ascii=False) + "\n")
            if "wandb" in tracking.logger:
                tracking.log({"opd/samples": table(found)}, step, backend=["wandb"])
        except Exception:  # a training is worth more than a look at it
            if not self.failed:
                logger.warning("no samples of step %d (said once): training goes on", step, exc_info=True)
            self.failed = True

    def collect(self, scored: Scored, step: int) -> list[Sample]:
        """The chosen rollouts, decoded."""
        batch, means = scored.batch, scored.mean_rewards()
        chosen = choose(batch.keys, means, self.samples.count, zlib.crc32(f"samples/{self.seed}/{step}".encode()))
        if not chosen:
            return []
        keys = [batch.keys[one.row] for one in chosen]
        fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["prompts"])
        prompts = [self.decode(prompt.tolist()) for prompt in fields["prompts"].unbind(0)]
        return [self.sample(scored, one, prompt, means[one.row]) for one, prompt in zip(chosen, prompts, strict=True)]

    def sample(self, scored: Scored, chosen: Chosen, prompt: str, mean: float) -> Sample:
        """One of them."""
        row, inputs = chosen.row, scored.inputs
        off_policy = inputs.off_policy is not None and bool(inputs.off_policy[row])
        return Sample(
            name=scored.batch.keys[row],
            why=chosen.why + (", the data set's response" if off_policy else ""),
            prompt=prompt,
            tokens=self.tokens(scored, row),
            mean_reward=mean,
            score=inputs.task_score[row].item(),
            correct=None if inputs.correct is None else bool(inputs.correct[row]),
        )

    def tokens(self, scored: Scored, row: int) -> list[Token]:
        """A response's tokens with their numbers."""
        ids, inputs = scored.responses.unbind(0)[row].tolist(), scored.inputs
        numbers = (inputs.log_p_old, inputs.log_q, scored.reward, scored.trained, inputs.student_entropy)
        columns = [column[row, : len(ids)].tolist() for column in numbers]
        none = [None] * len(ids)
        teacher = none if inputs.teacher_entropy is None else inputs.teacher_entropy[row, : len(ids)].tolist()
        quadrants = quadrant(scored.reward[row], inputs.student_entropy[row], low_entropy(inputs))[: len(ids)].tolist()
        texts, top = token_texts(ids, self.decode), self.top(scored, row, len(ids))
        return [Token(*one) for one in zip(ids, texts, *columns, teacher, quadrants, top, strict=True)]

    def top(self, scored: Scored, row: int, length: int) -> Sequence[list[tuple[str, float]] | None]:
        """The teacher's most likely tokens at each of a response's positions, where the step read them."""
        if scored.top is None:
            return [None] * length
        ids, log_q = (one.unbind(0)[row].tolist() for one in scored.top)
        return top_tokens(ids, log_q, self.decode)


def low_entropy(inputs: RewardInputs) -> float:
    """The run's own threshold between committed and forking tokens, nats."""
    return LOW_ENTROPY if inputs.tokens is None else inputs.tokens.low_entropy


def table(samples: Sequence[Sample]) -> Any:
    """The same as a wandb.Table, each response a page of its own."""
    import wandb

    scale = scale_of(samples)
    found = wandb.Table(columns=list(COLUMNS))
    for one in samples:
        html = wandb.Html(response_page(one, scale))
        found.add_data(one.name, one.why, one.prompt, html, len(one.tokens), one.mean_reward, one.score, one.correct)
    return found
