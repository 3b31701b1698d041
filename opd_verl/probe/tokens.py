"""Some measured rollouts token by token, for a reader: tokens.json."""

from collections.abc import Callable
from typing import Any

from opd_verl.metrics.quadrants import quadrant
from opd_verl.probe.observe import observe
from opd_verl.probe.readings import Pair
from opd_verl.probe.rollouts import Rollout
from opd_verl.samples.choose import Chosen, choose
from opd_verl.samples.tokens import token_texts

SHOWN_TOP = 8
"""Of the teacher's most likely ids."""
DIGITS = 4

Decode = Callable[[list[int]], str]


def sample_tokens(
    student: str, teacher: str, pair: Pair, rollouts: list[Rollout], decode: Decode, count: int, low_entropy: float
) -> list[dict[str, Any]]:
    """`count` rollouts: lowest and highest mean r_t, the others by lot."""
    seen = observe(pair, rollouts)
    reward, lengths = seen.reward, [len(one.response_ids) for one in rollouts]
    means = [reward[row, :length].mean().item() for row, length in enumerate(lengths)]
    names = [f"{student}, prompt {one.prompt}, rollout {row}" for row, one in enumerate(rollouts)]
    quadrants = quadrant(reward, seen.student_entropy, low_entropy)
    ids, log_q = pair.teacher.column("topk_ids", pair.k), pair.teacher.column("topk_log_probs", pair.k)

    def shown(chosen: Chosen) -> dict[str, Any]:
        row = chosen.row
        one = rollouts[row]
        columns = (seen.log_p, seen.log_q, reward, seen.student_entropy, seen.teacher_entropy, quadrants)
        numbers = [column[row, : lengths[row]].tolist() for column in columns if column is not None]
        tops = [
            [[decode([int(token)]), round(float(value), DIGITS)] for token, value in zip(*pairs, strict=True)]
            for pairs in zip(ids[row][:, :SHOWN_TOP], log_q[row][:, :SHOWN_TOP], strict=True)
        ]
        texts = token_texts(one.response_ids, decode)
        rows = zip(one.response_ids, texts, *numbers, tops, strict=True)
        return {
            "name": names[row],
            "why": chosen.why,
            "teacher": teacher,
            "prompt": decode(one.prompt_ids),
            "score": one.score,
            "correct": one.correct,
            "mean_reward": means[row],
            "tokens": [token(*values) for values in rows],
        }

    return [shown(chosen) for chosen in choose(names, means, count, seed=0)]


def token(id: int, text: str, *numbers: Any) -> dict[str, Any]:
    """One token; numbers: log p, log q, r_t, both entropies, quadrant, the teacher's top ids."""
    *values, quadrant_, top = numbers
    names = ("log_p", "log_q", "reward", "student_entropy", "teacher_entropy")
    rounded = {name: round(value, DIGITS) for name, value in zip(names, values, strict=True)}
    return {"id": id, "text": text, **rounded, "trained": True, "quadrant": quadrant_, "top": top}
