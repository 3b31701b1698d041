"""Shows rollouts of a step, called by the trainer: a page and JSON in `samples/`, and a table in wandb."""

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import transfer_queue as tq
from omegaconf import DictConfig
from torch import Tensor
from transfer_queue import KVBatchMeta
from transformers import PreTrainedTokenizerBase

from opd_verl.config.sections import SamplesConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.metrics.quadrants import quadrant
from opd_verl.metrics.thresholds import LOW_ENTROPY
from opd_verl.tracking.samples.choose import Chosen, choose
from opd_verl.tracking.samples.html import page, response_page, scale_of
from opd_verl.tracking.samples.record import RolloutRecord, Token, to_json
from opd_verl.tracking.samples.tokens import token_texts, top_tokens
from opd_verl.utils.files import write_text

if TYPE_CHECKING:
    import wandb
    from verl.utils.tracking import Tracking

logger = logging.getLogger(__name__)
COLUMNS = ("rollout", "chosen", "prompt", "response", "tokens", "mean_r_t", "score", "correct")


@dataclass(frozen=True)
class Scored:
    """The rollouts of a step with their tokens' scores."""

    batch: KVBatchMeta
    """The rollouts' keys and tags."""
    responses: Tensor
    """Token ids, jagged [B, R]."""
    inputs: RewardInputs
    reward: Tensor
    """r_t [B, R]."""
    weights: Tensor | None
    """`opd_weights` [B, R]; None: every token of the mask counts."""
    top: tuple[Tensor, Tensor] | None = None
    """The teacher's top-k ids and log q, jagged [B, R, K], in the steps that read them."""

    @property
    def trained(self) -> Tensor:
        """Which tokens have a part in the loss, bool [B, R]."""
        mask = self.inputs.mask.bool()
        return mask if self.weights is None else mask & (self.weights > 0)

    def mean_rewards(self) -> list[float]:
        """Mean r_t of each rollout over its unmasked tokens; NaN without such tokens, and for verl's padding rows."""
        mask = self.inputs.mask
        means = ((self.reward * mask).sum(-1) / mask.sum(-1)).tolist()
        padding = [tag.get("is_padding", False) for tag in self.batch.tags]
        return [float("nan") if is_padding else mean for mean, is_padding in zip(means, padding, strict=True)]


class SampleRollouts:
    """Shows `opd.samples.count` rollouts after every `opd.samples.every` steps."""

    def __init__(self, samples: SamplesConfig, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.samples, self.failed = samples, False
        self.tokenizer = tokenizer
        self.folder = Path(config.trainer.default_local_dir) / "samples"
        self.seed = config.actor_rollout_ref.rollout.seed

    def show(self, scored: Scored, step: int, tracking: "Tracking") -> None:
        """Writes the page and its JSON and logs the table to wandb, in the steps of `opd.samples.every`.

        A failure (a full disk) gives one warning and never ends the training.
        """
        if not self.samples.every or step % self.samples.every:
            return
        try:
            samples = self.collect(scored, step)
            write_text(self.folder / f"step_{step:06d}.html", page(step, samples))
            content = {"step": step, "rollouts": [to_json(sample) for sample in samples]}
            write_text(self.folder / f"step_{step:06d}.json", json.dumps(content, ensure_ascii=False) + "\n")
            if "wandb" in tracking.logger:
                tracking.log({"opd/samples": table(samples)}, step, backend=["wandb"])
        except Exception:  # every kind of error: a page must not end a training
            if not self.failed:
                logger.warning("no samples of step %d (said once): the training continues", step, exc_info=True)
            self.failed = True

    def collect(self, scored: Scored, step: int) -> list[RolloutRecord]:
        """The chosen rollouts, decoded."""
        batch, means = scored.batch, scored.mean_rewards()
        chosen = choose(batch.keys, means, self.samples.count, zlib.crc32(f"samples/{self.seed}/{step}".encode()))
        if not chosen:
            return []
        keys = [batch.keys[pick.row] for pick in chosen]
        # Only these rollouts' prompts are fetched: the rest of the step needs no prompts here.
        fields = tq.kv_batch_get(keys=keys, partition_id=str(batch.partition_id), select_fields=["prompts"])
        prompts = [self.decode(prompt.tolist()) for prompt in cast(Tensor, fields["prompts"]).unbind(0)]
        return [self.sample(scored, pick, text, means[pick.row]) for pick, text in zip(chosen, prompts, strict=True)]

    def sample(self, scored: Scored, chosen: Chosen, prompt: str, mean: float) -> RolloutRecord:
        """A chosen rollout as a record."""
        row, inputs = chosen.row, scored.inputs
        off_policy = inputs.off_policy is not None and bool(inputs.off_policy[row])
        return RolloutRecord(
            name=scored.batch.keys[row],
            why=chosen.why + (", the data set's response" if off_policy else ""),
            prompt=prompt,
            tokens=self.tokens(scored, row),
            mean_reward=mean,
            score=inputs.task_score[row].item(),
            correct=None if inputs.correct is None else bool(inputs.correct[row]),
        )

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def tokens(self, scored: Scored, row: int) -> list[Token]:
        """A response's tokens with their numbers."""
        ids, inputs = scored.responses.unbind(0)[row].tolist(), scored.inputs
        numbers = (inputs.log_p_old, inputs.log_q, scored.reward, scored.trained, inputs.student_entropy)
        columns = [column[row, : len(ids)].tolist() for column in numbers]
        none = [None] * len(ids)
        teacher = none if inputs.teacher_entropy is None else inputs.teacher_entropy[row, : len(ids)].tolist()
        quadrants = quadrant(scored.reward[row], inputs.student_entropy[row], low_entropy(inputs))[: len(ids)].tolist()
        texts, top = token_texts(ids, self.decode), self.top(scored, row, len(ids))
        return [Token(*fields) for fields in zip(ids, texts, *columns, teacher, quadrants, top, strict=True)]

    def top(self, scored: Scored, row: int, length: int) -> Sequence[list[tuple[str, float]] | None]:
        """The teacher's most likely tokens at each of a response's positions; None if the step did not read them."""
        if scored.top is None:
            return [None] * length
        ids, log_q = (field.unbind(0)[row].tolist() for field in scored.top)
        return top_tokens(ids, log_q, self.decode)


def low_entropy(inputs: RewardInputs) -> float:
    """The run's own threshold between committed and forking tokens, nats."""
    return LOW_ENTROPY if inputs.tokens is None else inputs.tokens.low_entropy


def table(samples: Sequence[RolloutRecord]) -> "wandb.Table":
    """The samples as wandb's table; each response is an HTML page."""
    import wandb

    scale = scale_of(samples)
    made = wandb.Table(columns=list(COLUMNS))
    for sample in samples:
        html, numbers = wandb.Html(response_page(sample, scale)), (sample.mean_reward, sample.score, sample.correct)
        made.add_data(sample.name, sample.why, sample.prompt, html, len(sample.tokens), *numbers)
    return made
