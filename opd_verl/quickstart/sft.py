"""Fine-tunes the quickstart's models on worked solutions that are generated on the fly.

The loss is the mean cross-entropy over response tokens, the final end-of-turn token included, in nats per token.
Shapes: B sequences, T tokens of the padded batch.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd_verl.quickstart.task import careless_solution, open_lines, problem_stream
from opd_verl.quickstart.tokenizer import encode_prompts, encode_responses, pad_id

IGNORED = -100
"""Label of a position without loss; `cross_entropy` skips it."""


@dataclass(frozen=True)
class SftSettings:
    """One SFT run."""

    max_steps: int
    """Most optimizer steps; the cosine decay ends there."""
    batch: int = 32
    """Sequences per step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup: int = 20
    """Steps of linear warmup."""
    forget: float = 0.0
    """Probability that a solution forgets a carry; 0: correct work."""
    seed: int = 0
    """Seed of the data."""
    openers: tuple[float, ...] = ()
    """Weights of the letters that open a line (`open_lines`); empty: no letters."""
    misadded: tuple[int, ...] = ()
    """Sums of two digits to which every solution adds one too much."""


TEACHER_SFT = SftSettings(max_steps=600)
STUDENT_SFT = SftSettings(max_steps=450, forget=0.6)
"""The student's data forgets 60% of the carries: more than half, so the greedy answer is wrong if a carry occurs."""


@dataclass(frozen=True)
class StopRule:
    """Ends a run once the model is good enough."""

    accuracy: Callable[[Qwen3ForCausalLM], float]
    """Measures the accuracy of a model, 0 to 1."""
    target: float
    """Stop at or above this accuracy."""
    eval_every: int
    """Steps between measurements."""


def collate(prompts: list[list[int]], responses: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins and right-pads. Returns ids [B, T] and labels [B, T], which are `IGNORED` outside the response."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids_BT = torch.full((len(prompts), longest), pad)
    labels_BT = torch.full((len(prompts), longest), IGNORED)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids_BT[row, :end] = torch.tensor(prompt + response)
        labels_BT[row, len(prompt) : end] = torch.tensor(response)
    return ids_BT, labels_BT


def batches(tokenizer: PreTrainedTokenizerFast, settings: SftSettings) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields batches of training problems with solutions, without end: ids [B, T], labels [B, T]."""
    stream = problem_stream("train", settings.seed)
    rng = random.Random(settings.seed)
    while True:
        problems = list(islice(stream, settings.batch))
        solutions = [careless_solution(problem, settings.forget, rng, settings.misadded) for problem in problems]
        if settings.openers:
            solutions = [open_lines(text, settings.openers, rng) for text in solutions]
        prompts, responses = encode_prompts(tokenizer, problems), encode_responses(tokenizer, solutions)
        yield collate(prompts, responses, pad_id(tokenizer))


def sft_loss(model: Qwen3ForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy per response token."""
    # No attention mask: attention is causal, and right padding lies after every token that counts.
    logits_BTV = model(input_ids=ids_BT).logits[:, :-1].float()
    return cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)


def lr_scale(step: int, settings: SftSettings) -> float:
    """Returns the factor on the peak learning rate: linear warmup, then cosine decay to 0 at `max_steps`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.max_steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _make_optimizer(model: Qwen3ForCausalLM, settings: SftSettings) -> tuple[AdamW, LambdaLR]:
    optimizer = AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    return optimizer, LambdaLR(optimizer, lambda step: lr_scale(step, settings))


def _update(model: Qwen3ForCausalLM, optimizer: AdamW, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    loss = sft_loss(model.train(), *batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train_until(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: SftSettings,
    stop: StopRule | None = None,
    label: str = "SFT",
    line: int = 0,
) -> int:
    """Trains the model in place for `max_steps`, or until `stop` is met. Returns the number of steps.

    `label` and `line` are name and terminal line of the progress bar: two runs show their bars below each other.
    """
    optimizer, schedule = _make_optimizer(model, settings)
    data = islice(batches(tokenizer, settings), settings.max_steps)
    with tqdm(data, total=settings.max_steps, desc=label, position=line) as progress:
        for step, batch in enumerate(progress, start=1):
            nats = _update(model, optimizer, batch)
            schedule.step()
            progress.set_postfix(nats_per_token=f"{nats:.3f}")
            if stop and step % stop.eval_every == 0 and stop.accuracy(model) >= stop.target:
                return step
    return settings.max_steps
