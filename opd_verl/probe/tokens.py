"""Some measured rollouts token by token, for a reader: the content of tokens.json."""

from collections.abc import Callable, Sequence

from opd_verl.metrics.measurements import Observed
from opd_verl.metrics.quadrants import quadrant
from opd_verl.probe.observe import ObservedPair
from opd_verl.probe.rollouts import Rollout
from opd_verl.tracking.samples.choose import Chosen, choose
from opd_verl.tracking.samples.record import RolloutRecord, Token, to_json
from opd_verl.tracking.samples.tokens import token_texts, top_tokens

Decode = Callable[[Sequence[int]], str]


def sample_tokens(
    pair: ObservedPair, rollouts: list[Rollout], decode: Decode, count: int, low_entropy: float
) -> list[dict[str, object]]:
    """`count` rollouts as plain values: the lowest and the highest mean r_t, the others drawn by lot."""
    seen, k = pair.observed, pair.readings.k
    means = [seen.reward[row, : len(rollout.response_ids)].mean().item() for row, rollout in enumerate(rollouts)]
    names = [f"{pair.student}, prompt {rollout.prompt}, rollout {row}" for row, rollout in enumerate(rollouts)]
    ids, log_q = (pair.readings.teacher.column(name, k) for name in ("topk_ids", "topk_log_probs"))

    def sample(chosen: Chosen) -> RolloutRecord:
        row, rollout = chosen.row, rollouts[chosen.row]
        return RolloutRecord(
            name=names[row],
            why=chosen.why,
            prompt=decode(rollout.prompt_ids),
            tokens=tokens_of(
                rollout.response_ids,
                row,
                seen,
                top_tokens(ids[row].tolist(), log_q[row].tolist(), decode),
                decode,
                low_entropy,
            ),
            mean_reward=means[row],
            score=rollout.score,
            correct=rollout.correct,
            teacher=pair.teacher,
        )

    return [to_json(sample(chosen)) for chosen in choose(names, means, count, seed=0)]


def tokens_of(
    ids: list[int], row: int, seen: Observed, top: list[list[tuple[str, float]]], decode: Decode, low_entropy: float
) -> list[Token]:
    """A rollout's tokens with their numbers; top: the teacher's most likely tokens at each position."""
    assert seen.teacher_entropy is not None
    columns = (seen.log_p, seen.log_q, seen.reward, seen.mask.bool(), seen.student_entropy, seen.teacher_entropy)
    numbers = [column[row, : len(ids)].tolist() for column in columns]
    quadrants = quadrant(seen.reward[row], seen.student_entropy[row], low_entropy)[: len(ids)].tolist()
    return [Token(*fields) for fields in zip(ids, token_texts(ids, decode), *numbers, quadrants, top, strict=True)]
