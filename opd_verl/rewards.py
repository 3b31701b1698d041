"""Rule-based reward: 1.0 when the last `\\boxed{...}` of a response is the ground truth, else 0.0.

Used by verl with `reward.custom_reward_function.path=pkg://opd_verl.rewards`. Equal strings and plain numbers are
settled here. Everything else goes to math-verify in a child process: verl calls rewards from threads, where
math-verify's own timeouts (SIGALRM) do not work, and an answer such as `9^{9^{9^9}}` would hold the worker for ever.
"""

import json
import resource
import select
import subprocess
import sys
from decimal import Decimal
from re import fullmatch
from threading import Lock
from typing import Any

BOX = "\\boxed{"
NUMBER = r"[+-]?\d{1,30}(\.\d{1,30})?"
LONGEST_ANSWER = 300
"""Characters; longer answers are wrong unless they are the same string."""
SECONDS_PER_ANSWER = 3
SECONDS_TO_START = 60
MEMORY_LIMIT = 4 * 2**30
"""Bytes the child may map: a tower of powers fills memory faster than time."""


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
    """Whether two answers are the same string up to outer white space, or the same mathematics."""
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
        with self._lock:
            process = self._process = self._running() or _start()
            verdict = _ask(process, answer, ground_truth, SECONDS_PER_ANSWER)
            if verdict is None:
                process.kill()
                process.communicate()
            return bool(verdict)

    def _running(self) -> subprocess.Popen[bytes] | None:
        return self._process if self._process and self._process.poll() is None else None


def _start() -> subprocess.Popen[bytes]:
    # -P keeps this file's folder off the child's path, where our module names would hide others'.
    process = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if not _ask(process, "1/2", "0.5", SECONDS_TO_START):
        raise RuntimeError("the math-verify process did not start; is math-verify installed?")
    return process


def _ask(process: subprocess.Popen[bytes], answer: str, ground_truth: str, seconds: float) -> bool | None:
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


def _serve() -> None:
    """The child: read `[answer, ground_truth]` per line, write `true` or `false` per line."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for line in sys.stdin:
        gold, pred = (parse(f"${BOX}{side}}}$", parsing_timeout=SECONDS_PER_ANSWER) for side in json.loads(line)[::-1])
        print(json.dumps(bool(verify(gold, pred, timeout_seconds=SECONDS_PER_ANSWER))), flush=True)


if __name__ == "__main__":
    _serve()
