"""Rule-based reward: 1.0 when the last `\\boxed{...}` of a response is the ground truth, else 0.0.

Used by verl with `reward.custom_reward_function.path=pkg://opd_verl.rewards`. An exact string match is tried first, so
that math-verify, which takes milliseconds, is only asked about answers that are written differently.
"""

from typing import Any

BOX = "\\boxed{"


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` whose braces balance, or None if there is none."""
    start = text.rfind(BOX)
    while start >= 0:
        content = _until_balanced(text[start + len(BOX) :])
        if content is not None:
            return content
        start = text.rfind(BOX, 0, start)
    return None


def _until_balanced(text: str) -> str | None:
    depth = 1
    for end, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:end]
    return None


def is_equal(answer: str, ground_truth: str) -> bool:
    """Whether two answers are the same string up to outer white space, or the same mathematics to math-verify."""
    if answer.strip() == ground_truth.strip():
        return True
    return bool(answer.strip()) and _math_equal(answer, ground_truth)


def _math_equal(answer: str, ground_truth: str) -> bool:
    from math_verify import parse, verify

    # Timeouts are off: they use SIGALRM, which works only in a main thread, and verl's reward workers are not one.
    gold, pred = (parse(f"${BOX}{side}}}$", parsing_timeout=None) for side in (ground_truth, answer))
    return verify(gold, pred, timeout_seconds=None)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float | bool | str]:
    """Score one response in verl's calling convention.

    Args:
        data_source: unused, part of verl's contract.
        solution_str: the decoded response; any string.
        ground_truth: the correct answer, without a box.
        extra_info: unused, part of verl's contract.

    Returns:
        score: 1.0 or 0.0; acc: the same as a bool; pred: the boxed answer, empty if there is none.
    """
    pred = last_boxed(solution_str)
    correct = pred is not None and is_equal(pred, ground_truth)
    return {"score": float(correct), "acc": correct, "pred": pred or ""}
