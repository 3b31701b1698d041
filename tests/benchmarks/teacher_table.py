"""Teacher scoring as markdown: per teacher the speeds, what they are made of, whether both agree; then the budgets."""

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
class Measured:
    """One teacher in one dtype: seconds of every round and bytes by step, response tokens, largest |log q| differences.

    differences: by what is compared, nats.
    """

    size: TeacherSize
    dtype: str
    k: int
    tokens: int
    seconds: dict[str, list[float]]
    shipped: dict[str, int]
    differences: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """Median seconds of a step."""
        return statistics.median(self.seconds[name]) if name in self.seconds else None

    def bytes_per_token(self, name: str) -> float | None:
        """Of one step's answers."""
        return self.shipped[name] / self.tokens if name in self.shipped else None


def speed_rows(found: Measured) -> list[list[str]]:
    """One line per side and kind of answer."""
    rows = []
    for name, title in TITLES.items():
        if (seconds := found.median(name)) is not None:
            faster = ratio(found.median(PEER[name]), seconds) if name in PEER else None
            rows.append(
                [
                    title.format(k=found.k),
                    found.dtype,
                    f"{seconds:.3f}",
                    f"{spread(found.seconds[name]):.0%}",
                    f"{found.tokens / seconds:.0f}",
                    NONE if faster is None else f"{faster:.2f} x",
                    shown(found.bytes_per_token(name), ".1f"),
                ]
            )
    return rows


def parts_rows(found: Measured) -> list[list[str]]:
    """What the top-k step of each side consists of: three parts, the middle one being what the other two leave."""
    rows = []
    for side, shipping in (("ours", "ours_encode"), ("vllm", "vllm_ship")):
        whole, body, ship = (found.median(name) for name in (side, f"{side}_body", shipping))
        if whole is not None and body is not None and ship is not None:
            parts = [f"{part:.3f} ({part / whole:.0%})" for part in (body, whole - body - ship, ship)]
            rows.append([found.dtype, side, f"{whole:.3f}", *parts])
    return rows


def agreement_lines(found: Measured) -> list[str]:
    """Largest differences of log q of the sampled tokens."""
    return [
        f"{found.dtype}: largest |log q difference| of the sampled tokens, {what}: {nats:.1e} nats."
        for what, nats in found.differences.items()
    ]


def target(size: TeacherSize) -> float | None:
    """How much faster than vLLM we want to be: the two teachers of tests/benchmarks/README.md 3, None for any other."""
    if size.hidden <= 256 and size.layers <= 4 and size.vocabulary > 100_000:
        return HEAD_TARGET
    return BODY_TARGET if size.hidden >= 1024 and size.layers >= 16 else None


def at_least(measured: float | None, limit: float) -> tuple[str, str, str]:
    """Target, measured value, and whether it holds, as far as the digits shown say."""
    if measured is None:
        return f">= {limit:.2f} x", NONE, "not measured"
    return f">= {limit:.2f} x", f"{measured:.2f} x", "met" if round(measured, 2) >= limit else "missed"


def budget_rows(found: Measured) -> list[list[str]]:
    """Speed against vLLM, bytes, and the late question's price."""
    rows = []
    where = [str(found.size), found.dtype]
    if (limit := target(found.size)) is not None:
        speed = ratio(found.median("vllm"), found.median("ours"))
        rows.append([f"speed: ours against vLLM, top-{found.k}", *where, *at_least(speed, limit)])
    for name, most in BYTES_LIMITS.items():
        what = f"bytes per response token, {TITLES[name].format(k=found.k)}"
        rows.append([what, *where, *verdict(found.bytes_per_token(name), most, ".1f")])
    gather = ratio(found.median("ours_gather"), found.median("ours"))
    rows.append([f"log q at {found.k} ids afterwards / scoring", *where, *verdict(gather, GATHER_LIMIT, ".3f")])
    return rows


def teacher_section(title: str, results: list[Measured]) -> list[str]:
    """One teacher in all dtypes."""
    lines = ["", f"## {title}", ""]
    lines += map(row, [COLUMNS, ["---"] * len(COLUMNS), *(cells for found in results for cells in speed_rows(found))])
    lines += ["", "What the top-k seconds are made of:", ""]
    lines += map(row, [PARTS, ["---"] * len(PARTS), *(cells for found in results for cells in parts_rows(found))])
    for found in results:
        lines += ["", *agreement_lines(found)] if found.differences else []
    return lines


def budget_section(results: list[Measured]) -> list[str]:
    """All budgets that these teachers can be held against."""
    rows = [cells for found in results for cells in budget_rows(found)]
    return ["", "## Budgets (tests/benchmarks/README.md 3)", "", *map(row, [BUDGETS, ["---"] * len(BUDGETS), *rows])]
