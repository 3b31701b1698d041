"""Some measured rollouts token by token, for a reader: tokens.json."""

from collections.abc import Callable
from typing import Any

from opd_verl.metrics.measurements import Observed
from opd_verl.metrics.quadrants import quadrant
from opd_verl.probe.observe import ObservedPair
from opd_verl.probe.rollouts import Rollout
from opd_verl.tracking.samples.choose import Chosen, choose
from opd_verl.tracking.samples.record import Sample, Token, to_json
from opd_verl.tracking.samples.tokens import token_texts, top_tokens

Decode = Callable[[list[int]], str]


def sample_tokens(
    pair: ObservedPair, rollouts: list[Rollout], decode: Decode, count: int, low_entropy: float
) -> list[dict[str, Any]]:
    """`count` rollouts: lowest and highest mean r_t, the others by lot."""
    seen, k = pair.observed, pair.pair.k
    means = [seen.reward[row, : len(one.response_ids)].mean().item() for row, one in enumerate(rollouts)]
    names = [f"{pair.student}, prompt {one.prompt}, rollout {row}" for row, one in enumerate(rollouts)]
    ids, log_q = (pair.pair.teacher.column(name, k) for name in ("topk_ids", "topk_log_probs"))

    def shown(chosen: Chosen) -> Sample:
        row, one = chosen.row, rollouts[chosen.row]
        top = top_tokens(ids[row].tolist(), log_q[row].tolist(), decode)
        tokens = tokens_of(one.response_ids, row, seen, top, decode, low_entropy)
        prompt = decode(one.prompt_ids)
        return Sample(names[row], chosen.why, prompt, tokens, means[row], one.score, one.correct, pair.teacher)

    return [to_json(shown(chosen)) for chosen in choose(names, means, count, seed=0)]


def tokens_of(
    ids: list[int], row: int, seen: Observed, top: list[list[tuple[str, float]]], decode: Decode, low_entropy: float
) -> list[Token]:
    """A rollout's tokens with their numbers."""
    assert seen.teacher_entropy is not None
    columns = (seen.log_p, seen.log_q, seen.reward, seen.mask.bool(), seen.student_entropy, seen.teacher_entropy)
    numbers = [column[row, : len(ids)].tolist() for column in columns]
    quadrants = quadrant(seen.reward[row], seen.student_entropy[row], low_entropy)[: len(ids)].tolist()
    return [Token(*one) for one in zip(ids, token_texts(ids, decode), *numbers, quadrants, top, strict=True)]
