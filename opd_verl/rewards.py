"""Rule-based reward: 1.0 when the last `\\boxed{...}` of a response is the ground truth, else 0.0.

verl calls it under `reward.custom_reward_function.path=pkg://opd_verl.rewards`. Equal strings and plain numbers are
compared here, all other answers by math-verify in a child process: verl calls rewards from threads, where math-verify's
own timeouts (SIGALRM) do not work, and an answer such as `9^{9^{9^9}}` would hold the worker for ever.
"""

import json
import resource
import select
import subprocess
import sys
from decimal import Decimal
from re import fullmatch
from threading import Lock

BOX = "\\boxed{"
NUMBER = r"[+-]?\d{1,30}(\.\d{1,30})?"
"""A plain decimal number, short enough to compare exactly."""
LONGEST_ANSWER = 300
"""Characters; a longer answer is wrong unless it equals the ground truth as a string."""
SECONDS_PER_ANSWER = 3
SECONDS_TO_START = 60
"""The child imports sympy, which takes long on a busy machine."""
MEMORY_LIMIT = 4 * 2**30
"""Bytes that the child may map: a tower of powers fills memory before its seconds are over."""


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
    """The text up to the brace that closes the box, or None if no brace does."""
    depth = 1
    for end, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:end]
    return None


def is_equal(answer: str, ground_truth: str) -> bool:
    """Whether two answers are equal strings up to outer white space, or equal mathematics."""
    answer, ground_truth = answer.strip(), ground_truth.strip()
    if answer == ground_truth:
        return True
    if fullmatch(NUMBER, answer) and fullmatch(NUMBER, ground_truth):
        return Decimal(answer) == Decimal(ground_truth)
    return 0 < len(answer) <= LONGEST_ANSWER and _CHILD.is_equal(answer, ground_truth)


class _MathVerify:
    """math-verify in a child process, started when first asked and replaced when it does not answer in time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def is_equal(self, answer: str, ground_truth: str) -> bool:
        """math-verify's verdict; False if it takes longer than `SECONDS_PER_ANSWER`."""
        # One question at a time: the pipe carries no names to tell two answers apart.
        with self._lock:
            process = self._process = self._running() or _start()
            verdict = _ask(process, answer, ground_truth, SECONDS_PER_ANSWER)
            if verdict is None:
                process.kill()
                process.communicate()
            return bool(verdict)

    def _running(self) -> subprocess.Popen[bytes] | None:
        """The child, if it is alive."""
        return self._process if self._process and self._process.poll() is None else None


def _start() -> subprocess.Popen[bytes]:
    """A child that has answered a first question. Raises RuntimeError where math-verify cannot be loaded."""
    # -P keeps this file's folder off the child's path, where our module names would hide other packages.
    process = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if not _ask(process, "1/2", "0.5", SECONDS_TO_START):
        raise RuntimeError("the math-verify process did not start; is math-verify installed?")
    return process


def _ask(process: subprocess.Popen[bytes], answer: str, ground_truth: str, seconds: float) -> bool | None:
    """The child's verdict, or None where it does not answer in time or ends."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([answer, ground_truth]).encode() + b"\n")
    process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else b""
    return json.loads(line) if line else None


_CHILD = _MathVerify()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, object] | None = None,
    **kwargs: object,
) -> dict[str, float | bool | str]:
    """Scores one response, in verl's calling convention.

    Args:
        data_source: unused, verl passes it.
        solution_str: the decoded response; any string.
        ground_truth: the correct answer, without a box.
        extra_info: unused, verl passes it.
        kwargs: unused, verl may pass more.

    Returns:
        `score`, 1.0 or 0.0; `acc`, the score as a bool; `pred`, the boxed answer, empty if there is none.
    """
    pred = last_boxed(solution_str)
    correct = pred is not None and is_equal(pred, ground_truth)
    return {"score": float(correct), "acc": correct, "pred": pred or ""}


def _serve() -> None:
    """The child's loop: reads `[answer, ground_truth]` from a line, writes `true` or `false` as a line."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for line in sys.stdin:
        gold, pred = (parse(f"${BOX}{side}}}$", parsing_timeout=SECONDS_PER_ANSWER) for side in json.loads(line)[::-1])
        print(json.dumps(bool(verify(gold, pred, timeout_seconds=SECONDS_PER_ANSWER))), flush=True)


if __name__ == "__main__":
    _serve()
