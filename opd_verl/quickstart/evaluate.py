"""Measures the quickstart's models: accuracy, response length, and the student's distance from the teacher.

Shapes: N problems, k samples of each, B = N * k sequences, P prompt tokens (left-padded), R response tokens
(right-padded), V ids below `len(tokenizer)`. Higher ids are padding rows of the embedding matrix, masked everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd_verl.quickstart.task import DATA_SOURCE, Addition
from opd_verl.quickstart.tokenizer import encode_prompts, end_id, pad_id
from opd_verl.rewards import compute_score

RESPONSE_LIMIT = 64
OVERLAP_KS = (1, 16)
"""Sizes of the top k: the papers' 16, and 1. Few of this task's 301 tokens are ever likely: ranks 3 to 16 are noise
near 1e-6."""
BATCH = 512
"""Sequences per forward pass: logits of 512 x 100 positions and 320 ids take 66 MB in float32."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses; row `n * k + i` is sample i of problem n."""

    prompts_BP: torch.Tensor
    prompt_mask_BP: torch.Tensor
    """1 on prompt tokens, 0 on left padding."""
    responses_BR: torch.Tensor
    mask_BR: torch.Tensor
    """True up to and including the end-of-turn token."""


@dataclass(frozen=True)
class Grades:
    """Results per problem and sample, all [N, k]."""

    correct: torch.Tensor
    """Whether the boxed answer is right (bool)."""
    lengths: torch.Tensor
    """Response tokens, the end-of-turn token included."""
    truncated: torch.Tensor
    """Whether the response hit the length limit without an end-of-turn token (bool)."""

    @property
    def accuracy(self) -> float:
        """avg@k, 0 to 1: mean over problems and samples."""
        return self.correct.float().mean().item()

    @property
    def mean_length(self) -> float:
        """Mean response length in tokens."""
        return self.lengths.float().mean().item()

    @property
    def truncated_share(self) -> float:
        """Share of responses cut at the limit, 0 to 1."""
        return self.truncated.float().mean().item()


@dataclass(frozen=True)
class Distance:
    """Distance of a student from the teacher on given rollouts, pooled over response tokens."""

    reverse_kl: float
    """Mean of KL(student || teacher) over the whole vocabulary, nats per token."""
    overlap: dict[int, float]
    """Mean of |student's top k ∩ teacher's top k| / k, 0 to 1, by k (Rethinking, eq. 6)."""


def _left_pad(prompts: list[list[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[fill] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def response_mask(responses_BR: torch.Tensor, end_id: int) -> torch.Tensor:
    """[B, R] True up to and including the first `end_id`; all True in a row without one."""
    ended_BR = (responses_BR == end_id).long().cumsum(dim=1)
    return (ended_BR == 0) | ((ended_BR == 1) & (responses_BR == end_id))


def _generation_options(vocabulary: int, tokens: int, greedy: bool) -> dict[str, object]:
    # Explicit: a saved generation_config could set a top k or top p, and the exact KL assumes the whole distribution.
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    padding_rows = list(range(tokens, vocabulary))
    return {"max_new_tokens": RESPONSE_LIMIT, "suppress_tokens": padding_rows or None, **sampling}


def _stack(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])


@torch.inference_mode()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Addition],
    samples: int = 1,
    greedy: bool = False,
    seed: int = 0,
) -> Rollouts:
    """Samples `samples` responses per problem at temperature 1 over the tokenizer's ids, or the greedy response."""
    prompts_NP, mask_NP = _left_pad(encode_prompts(tokenizer, problems), pad_id(tokenizer))
    prompts_BP, mask_BP = prompts_NP.repeat_interleave(samples, 0), mask_NP.repeat_interleave(samples, 0)
    options = _generation_options(model.config.vocab_size, len(tokenizer), greedy)
    # Forked: measuring a model must not change the random numbers of later steps.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = []
        for ids_BP, mask in zip(prompts_BP.split(BATCH), mask_BP.split(BATCH), strict=True):
            # Ignored: transformers types `generate` against a protocol that its own models do not meet.
            tokens = model.eval().generate(ids_BP, attention_mask=mask, **options)  # pyright: ignore
            parts.append(tokens[:, ids_BP.shape[1] :])
    responses_BR = _stack(parts, pad_id(tokenizer))
    return Rollouts(prompts_BP, mask_BP, responses_BR, response_mask(responses_BR, end_id(tokenizer)))


def grade(rollouts: Rollouts, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Addition]) -> Grades:
    """Grades each response with `opd_verl.rewards.compute_score`, the reward function of the recipes."""
    samples = len(rollouts.responses_BR) // len(problems)
    texts = [
        str(tokenizer.decode(ids[kept], skip_special_tokens=True))
        for ids, kept in zip(rollouts.responses_BR, rollouts.mask_BR, strict=True)
    ]
    answers = [problem.answer for problem in problems for _ in range(samples)]
    correct = [compute_score(DATA_SOURCE, t, a)["acc"] for t, a in zip(texts, answers, strict=True)]
    ended_B = ((rollouts.responses_BR == end_id(tokenizer)) & rollouts.mask_BR).any(dim=1)
    shape = (len(problems), samples)
    return Grades(
        correct=torch.tensor(correct).view(shape),
        lengths=rollouts.mask_BR.sum(dim=1).view(shape),
        truncated=(~ended_B).view(shape),
    )


def evaluate(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Addition],
    samples: int = 1,
    greedy: bool = False,
    seed: int = 0,
) -> Grades:
    """Samples responses and grades them."""
    return grade(sample(model, tokenizer, problems, samples, greedy, seed), tokenizer, problems)


@torch.inference_mode()
def response_log_probs(model: Qwen3ForCausalLM, rollouts: Rollouts, vocabulary: int) -> torch.Tensor:
    """Returns log-probs at the response tokens of all rollouts, [tokens, vocabulary] in float32."""
    parts = []
    for rows in torch.arange(len(rollouts.responses_BR)).split(BATCH):
        kept = rollouts.mask_BR[rows]
        mask = torch.cat([rollouts.prompt_mask_BP[rows], kept.long()], dim=1)
        ids = torch.cat([rollouts.prompts_BP[rows], rollouts.responses_BR[rows]], dim=1)
        # Counted from the first prompt token: left padding must not shift the rotary positions, as in vLLM.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model.eval()(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        # The logits that predict response token i stand one position before it.
        response_logits = logits[:, rollouts.prompts_BP.shape[1] - 1 : -1, :vocabulary]
        parts.append(response_logits[kept].float().log_softmax(dim=-1))
    return torch.cat(parts)


def overlap_ratio(log_p_TV: torch.Tensor, log_q_TV: torch.Tensor, k: int) -> float:
    """Returns the mean over positions of |top k of p ∩ top k of q| / k."""
    top_p, top_q = log_p_TV.topk(k).indices, log_q_TV.topk(k).indices
    shared_T = (top_p[:, :, None] == top_q[:, None, :]).sum(dim=(1, 2))
    return (shared_T / k).mean().item()


def distance(student: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, rollouts: Rollouts, vocabulary: int) -> Distance:
    """Measures exact reverse KL and top-k overlap of the two models on the student's own rollouts."""
    log_p_TV = response_log_probs(student, rollouts, vocabulary)
    log_q_TV = response_log_probs(teacher, rollouts, vocabulary)
    reverse_kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(dim=-1)
    overlap = {k: overlap_ratio(log_p_TV, log_q_TV, k) for k in OVERLAP_KS}
    return Distance(reverse_kl=reverse_kl_T.mean().item(), overlap=overlap)
