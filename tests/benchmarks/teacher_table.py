"""Teacher scoring as Markdown: speeds, their parts and the agreement of both sides per teacher; then the budgets."""

import statistics
from dataclasses import dataclass, field

from step_measure import spread
from step_table import NONE, ratio, row, shown, verdict
from teacher_inputs import TeacherSize

TITLES = {
    "ours": "ours: top-{k} and entropy",
    "vllm": "vLLM, prompt_logprobs={k}",
    "ours_sampled": "ours: sampled token and entropy",
    "vllm_sampled": "vLLM, prompt_logprobs=0",
}
PEER = {"ours": "vllm", "ours_sampled": "vllm_sampled"}
COLUMNS = ("variant", "dtype", "median s", "spread", "response tokens/s", "ours is faster", "bytes per response token")
PARTS = ("dtype", "side", "s", "forward pass", "head, top-k, results", "to bytes")
BUDGETS = ("budget", "teacher", "dtype", "target", "measured", "verdict")
HEAD_TARGET, BODY_TARGET = 3.0, 1.2
BYTES_LIMITS = {"ours": 100.0, "ours_sampled": 12.0}
GATHER_LIMIT = 0.05


@dataclass(frozen=True)
class TeacherTiming:
    """Timing of one teacher in one dtype: seconds by step and round, bytes by step, response tokens.

    differences: largest |difference of log q| by the compared pair, nats.
    """

    size: TeacherSize
    dtype: str
    k: int
    tokens: int
    seconds: dict[str, list[float]]
    shipped: dict[str, int]
    differences: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """Returns the median seconds of a step; None: not measured."""
        return statistics.median(self.seconds[name]) if name in self.seconds else None

    def bytes_per_token(self, name: str) -> float | None:
        """Returns the bytes per response token of a step's answers; None: not measured."""
        return self.shipped[name] / self.tokens if name in self.shipped else None


def speed_rows(timing: TeacherTiming) -> list[list[str]]:
    """Returns one line per side and kind of answer."""
    rows = []
    for name, title in TITLES.items():
        if (seconds := timing.median(name)) is not None:
            faster = ratio(timing.median(PEER[name]), seconds) if name in PEER else None
            rows.append(
                [
                    title.format(k=timing.k),
                    timing.dtype,
                    f"{seconds:.3f}",
                    f"{spread(timing.seconds[name]):.0%}",
                    f"{timing.tokens / seconds:.0f}",
                    NONE if faster is None else f"{faster:.2f} x",
                    shown(timing.bytes_per_token(name), ".1f"),
                ]
            )
    return rows


def parts_rows(timing: TeacherTiming) -> list[list[str]]:
    """Returns the three parts of each side's top-k step; the middle part is the rest of the other two."""
    rows = []
    for side, shipping in (("ours", "ours_encode"), ("vllm", "vllm_ship")):
        whole, body, ship = (timing.median(name) for name in (side, f"{side}_body", shipping))
        if whole is not None and body is not None and ship is not None:
            parts = [f"{part:.3f} ({part / whole:.0%})" for part in (body, whole - body - ship, ship)]
            rows.append([timing.dtype, side, f"{whole:.3f}", *parts])
    return rows


def agreement_lines(timing: TeacherTiming) -> list[str]:
    """Returns the largest differences of log q of the sampled tokens."""
    return [
        f"{timing.dtype}: largest |log q difference| of the sampled tokens, {what}: {nats:.1e} nats."
        for what, nats in timing.differences.items()
    ]


def target(size: TeacherSize) -> float | None:
    """How much faster than vLLM we want to be: the two teachers of tests/benchmarks/README.md 3, None for any other."""
    if size.hidden <= 256 and size.layers <= 4 and size.vocabulary > 100_000:
        return HEAD_TARGET
    return BODY_TARGET if size.hidden >= 1024 and size.layers >= 16 else None


def at_least(measured: float | None, limit: float) -> tuple[str, str, str]:
    """Returns target, measured value, and whether the target is met, judged by the digits that are shown."""
    if measured is None:
        return f">= {limit:.2f} x", NONE, "not measured"
    return f">= {limit:.2f} x", f"{measured:.2f} x", "met" if round(measured, 2) >= limit else "missed"


def budget_rows(timing: TeacherTiming) -> list[list[str]]:
    """Returns the budgets: speed against vLLM, bytes, and the price of log q at ids asked later."""
    rows = []
    where = [str(timing.size), timing.dtype]
    if (limit := target(timing.size)) is not None:
        speed = ratio(timing.median("vllm"), timing.median("ours"))
        rows.append([f"speed: ours against vLLM, top-{timing.k}", *where, *at_least(speed, limit)])
    for name, most in BYTES_LIMITS.items():
        what = f"bytes per response token, {TITLES[name].format(k=timing.k)}"
        rows.append([what, *where, *verdict(timing.bytes_per_token(name), most, ".1f")])
    gather = ratio(timing.median("ours_gather"), timing.median("ours"))
    rows.append([f"log q at {timing.k} ids afterwards / scoring", *where, *verdict(gather, GATHER_LIMIT, ".3f")])
    return rows


def teacher_section(title: str, results: list[TeacherTiming]) -> list[str]:
    """Returns the section of one teacher in all dtypes."""
    lines = ["", f"## {title}", ""]
    lines += map(row, [COLUMNS, ["---"] * len(COLUMNS), *(cells for timing in results for cells in speed_rows(timing))])
    lines += ["", "What the top-k seconds are made of:", ""]
    lines += map(row, [PARTS, ["---"] * len(PARTS), *(cells for timing in results for cells in parts_rows(timing))])
    for timing in results:
        lines += ["", *agreement_lines(timing)] if timing.differences else []
    return lines


def budget_section(results: list[TeacherTiming]) -> list[str]:
    """Returns the budgets of all these teachers."""
    rows = [cells for timing in results for cells in budget_rows(timing)]
    return ["", "## Budgets (tests/benchmarks/README.md 3)", "", *map(row, [BUDGETS, ["---"] * len(BUDGETS), *rows])]
